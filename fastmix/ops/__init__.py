"""The operators: one file each, with checks, fake, autograd and the public function."""

"""The fuzzer: every public function, class and method, called with good and bad values on every backend.

``values`` draws arguments as Python source, so that what is printed is what ran; ``functions``, ``mixing`` and
``modules`` hold a strategy for each public name; ``outcome`` says what a call may do; ``search`` lets hypothesis look
for one that does something else, and shrink it; ``__main__`` runs that in a process of its own (``make fuzz``).
``memory`` measures what calls leave behind.
"""

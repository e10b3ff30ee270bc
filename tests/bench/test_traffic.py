"""bench traffic: what the image kernels read from a GPU's memory, by the kernels' own order of blocks."""

import json
import subprocess

import pytest
from helpers import ROOT, simt_build

from fastmix.app.console import UsageError
from fastmix.bench import traffic as command
from fastmix.bench.harness import tiles
from fastmix.bench.harness.tiles import Images
from fastmix.bench.harness.traffic import (
    IMAGE_BY_IMAGE,
    LINE,
    SAMPLED,
    Cache,
    blend,
    paste,
    patch_mix,
    simulate,
)

IMAGENET = Images(256, 3, 224, 224, 4)
# What is read from memory, in batches, with 30 and with 50 MB: no image twice, and none that nobody shows. 0.66 of the
# pixels of DCutMix's images are shown; sectors on the edges of boxes make it more.
HELD = [("paste K=5 float32", paste, IMAGENET, 0.73),
        ("paste K=5 float32 channels_last", paste, Images(256, 3, 224, 224, 4, True), 0.70),
        ("patch_mix 4x4 float32", patch_mix, IMAGENET, 0.88),
        ("patch_mix 4x4 bfloat16 channels_last", patch_mix, Images(256, 3, 224, 224, 2, True), 0.88),
        ("blend K=2 float32", blend, IMAGENET, 1.0)]
BUDGET = json.loads((ROOT / "tests" / "backends" / "traffic_budget.json").read_text())


@pytest.mark.parametrize("name,make,images,most", HELD, ids=[held[0] for held in HELD])
def test_what_is_read_from_memory(name, make, images, most):
    sources = make(images)
    for l2 in (30, 50):
        found = simulate(images, sources, l2 * 1e6)
        assert found.read <= most
        assert found.read == pytest.approx(BUDGET[name][str(l2)], abs=0.005), "make budgets writes it anew"
        assert found.issued > found.read > 0.6
        assert found.written == 1


def test_image_by_image_reads_more():
    images = Images(256, 3, 224, 224, 2)
    sources = patch_mix(images)
    assert simulate(images, sources, 30e6, IMAGE_BY_IMAGE).read > 1.3
    assert simulate(images, sources, 30e6).read < 0.89


def test_a_cache_keeps_what_was_used_last():
    cache = Cache(2 * LINE * SAMPLED)
    assert [cache.touch(line) for line in (1, 2, 1, 3, 1, 2)] == [False, False, True, False, True, False]


def test_a_batch_that_fits_is_read_once():
    images = Images(8, 3, 32, 32, 4)
    assert simulate(images, blend(images, k=3), 50e6, IMAGE_BY_IMAGE).read == 1


@pytest.mark.parametrize("images", [Images(3, 3, 40, 24, 2), Images(3, 5, 16, 24, 4), Images(2, 3, 7, 9, 4),
                                    Images(2, 3, 21, 48, 2, True), Images(2, 3, 20, 28, 4, True)],
                         ids=["three planes", "five planes", "odd", "channels last", "channels last float"])
def test_tiles_cover_an_image_once(images):
    elements = sorted(e for tile in tiles.cuda(images) for first, count in tile for e in range(first, first + count))
    assert elements == list(range(images.rows * images.length))
    elements = sorted(e for tile in tiles.triton(images, 4, 32) for first, count in tile
                      for e in range(first, first + count))
    assert elements == list(range(images.rows * images.length))


# Every block of a grid says which elements of which image its threads have.
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include "simt.h"
// after simt.h
#include "cuda/lib/tile.cuh"

using namespace fastmix;

template <typename K>
FASTMIX_KERNEL void tell(ImageOutputs a) {
  const Tile<K> t = tile_of<K>(a);
  if (!t.place[0].exists) return;
  for (int i = 0; i < K::kPieces; ++i) {
    if (!t.has(i)) continue;
    const long long at = t.offset + t.step(a.grid, i);
    std::printf("%u %lld %lld %d\\n", blockIdx.x, static_cast<long long>(t.image), at, K::kElements);
  }
}

template <typename T>
void run(ImageOutputs a) {
  with_pieces<T, 2>(a.shape, nullptr, 0, nullptr, [&](auto kind) {
    using K = decltype(kind);
    const LaunchShape shape = tile_shape<K>(a);
    launch(tell<K>, shape, nullptr, a);
  });
}

int main(int, char** argv) {
  ImageOutputs a{};
  a.shape = {std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]), std::atoi(argv[6])};
  if (std::atoi(argv[1]) == 2) run<bf16>(a); else run<float>(a);
}
"""


@pytest.mark.skipif(simt_build.missing() is not None, reason=str(simt_build.missing()))
def test_the_kernels_divide_a_batch_as_the_model_does(tmp_path):
    source = tmp_path / "tiles.cpp"
    source.write_text(PROGRAM)
    program = simt_build.program("address", source, directory=tmp_path)
    for images in (Images(3, 3, 40, 24, 2), Images(3, 5, 16, 24, 4), Images(2, 3, 7, 9, 4),
                   Images(2, 3, 21, 48, 2, True), Images(2, 3, 20, 28, 4, True)):
        planes, pixel = (1, images.channels) if images.channels_last else (images.channels, 1)
        text = subprocess.run([str(program), *map(str, (images.itemsize, images.count, planes, images.height,
                                                        images.width, pixel))], capture_output=True, text=True,
                              check=True).stdout
        told: dict[tuple[int, int], set[int]] = {}
        for line in text.splitlines():
            block, image, at, count = map(int, line.split())
            told.setdefault((block, image), set()).update(range(at, at + count))
        wanted = {}
        for number, tile in enumerate(tiles.cuda(images)):
            for image in range(images.count):
                wanted[number * images.count + image, image] = {
                    e for first, count in tile for e in range(first, first + count)}
        assert told == wanted


def test_the_command_prints_a_table(capsys):
    assert command.main(["--op", "blend", "--l2", "30", "--dtype", "bfloat16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines[1:2]] == [["2.00", "1.00"]]
    assert "image by image" in lines[2]


def test_the_budget_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SHAPE", (4, 3, 32, 32))
    assert command.main(["--budget", str(tmp_path / "traffic.json")]) == 0
    written = json.loads((tmp_path / "traffic.json").read_text())
    assert written.keys() == BUDGET.keys()
    assert written["blend K=2 float32"] == {"30": 1.0, "50": 1.0}


@pytest.mark.parametrize("argv,said", [(["--op", "resize"], "no operator begins so"), (["--l2", "0"], "above 0")])
def test_what_the_command_refuses(argv, said):
    with pytest.raises(UsageError, match=said):
        command.main(argv)

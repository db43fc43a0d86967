"""The prefix tree with many blocks: bytes of a block, and how long it takes to find and hold a prompt's.

    python -m benchmark.prefix_tree --blocks 1000000 --prompt-blocks 2048

Every conversation is a path of ``--prompt-blocks`` blocks; times are medians of CPU time, of all conversations.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from statistics import median

from aegaeon.memory.eviction import EVICTIONS
from aegaeon.memory.prefix_tree import PrefixNode, PrefixTree
from benchmark.command.main import count, run_measuring

ROOT = b"model"


def names(conversation: int, blocks: int) -> list[bytes]:
    """The names of a conversation's blocks."""
    return [(conversation << 32 | index).to_bytes(16, "big") for index in range(blocks)]


def grow(tree: PrefixTree, path: list[bytes]) -> None:
    """Blocks that a request leaves behind."""
    before: PrefixNode | bytes = ROOT
    for index, name in enumerate(path):
        before = tree.add(index, 1, name, before, 1.0)


def find_and_hold(tree: PrefixTree, path: list[bytes]) -> None:
    """What a request's arrival and its end do."""
    found = tree.find(ROOT, path)
    tree.hold(found[-1])
    tree.let_go(found[-1])


def took_s(action: Callable[[], object]) -> float:
    """CPU seconds."""
    began_s = time.process_time()
    action()
    return time.process_time() - began_s


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=count, default=1_000_000)
    parser.add_argument("--prompt-blocks", type=count, default=2048)
    parser.add_argument("--policy", choices=[*EVICTIONS], default="slo")
    return parser.parse_args()


def _run(options: argparse.Namespace) -> int:
    tree = PrefixTree(EVICTIONS[options.policy]())
    tracemalloc.start()
    paths = [names(number, options.prompt_blocks) for number in range(-(-options.blocks // options.prompt_blocks))]
    names_bytes = tracemalloc.get_traced_memory()[0]
    for path in paths:
        grow(tree, path)
    tree_bytes = tracemalloc.get_traced_memory()[0] - names_bytes
    tracemalloc.stop()
    find_s = median(took_s(partial(tree.find, ROOT, path)) for path in paths)
    hold_s = median(took_s(partial(find_and_hold, tree, path)) for path in paths)
    blocks = len(tree)
    evict_s = took_s(lambda: [tree.evict() for _ in range(blocks)])
    print(f"{options.policy}, {blocks:,} blocks: {tree_bytes / blocks:.0f} bytes a block without its name")
    print(
        f"{options.prompt_blocks} names: {1e3 * find_s:.2f} ms to find, {1e3 * hold_s:.2f} with holding and letting go"
    )
    print(f"{1e6 * evict_s / blocks:.2f} us to give up a block")
    return 0


def main() -> int:
    """Run the command line: 0, 130 after Ctrl-C."""
    options = parse_options()
    return run_measuring("prefix_tree", lambda _spinners: _run(options))


if __name__ == "__main__":
    sys.exit(main())

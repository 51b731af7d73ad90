"""Train without a notebook, in one process or, started by torchrun or accelerate launch, in several: docs/scaling.md.

torchrun --nproc-per-node 4 -m helpers.train --preset coco_top10 [NAME=VALUE ...]
"""

import sys
from collections.abc import Sequence

from torch import distributed

from helpers import cli
from helpers.train import processes, run_folder
from helpers.train.training import train


def main(argv: Sequence[str] | None = None) -> int:
    cfg = cli.config_of("helpers.train", "Train one run, in one process or under torchrun.", argv)
    run = train(cfg, on_flush=run_folder.write_log)  # for who watches from outside
    if processes.rank() == 0:
        sys.stdout.writelines(f"{note}\n" for note in run.notes)
    if processes.several():
        distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    cli.command(main)

"""What ``torchrun`` starts for tests/train/test_processes.py: several trainings, one after the other, in one start.

    torchrun --nproc-per-node 2 tests/support/two_processes.py FOLDER

FOLDER/jobs.json holds [{"name", "config", "fault"}]; each process leaves FOLDER/NAME.RANK.json with how it ended. The
job called "gradients" is no training: it leaves those of each library loss.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from forge import hook
from torch import distributed


def install(fault: str | None) -> None:
    """Make something happen in the process of rank 1, in its third step."""
    from helpers import engine

    rank = int(os.environ["RANK"])

    def killed(*_) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def told_to_stop(*_) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def no_numbers(run, batches) -> None:
        batches[0]["labels"][0]["boxes"].fill(float("nan"))

    acts = {"kill": killed, "stop": told_to_stop, "not finite": no_numbers}
    if fault in acts and rank == 1:
        hook(engine, "train_step", 3, acts[fault])


def trained(job: dict) -> dict:
    """How a training ended in this process."""
    from helpers import engine
    from helpers.config import load_config
    from helpers.files import UserError
    from helpers.train import training

    step, exchanges = engine.train_step, [0]
    install(job["fault"])

    def counted(state, bucket):
        exchanges[0] += bucket.is_last()
        return distributed.algorithms.ddp_comm_hooks.default_hooks.allreduce_hook(state, bucket)

    build = training.build

    def built(*args):
        run = build(*args)
        run.model.register_comm_hook(distributed.group.WORLD, counted)
        return run

    training.build = built
    began = time.monotonic()
    try:
        run = training.train(load_config(**job["config"]))
        ended = {"status": "done", "said": " ".join(run.notes), "steps": run.step, "exchanges": exchanges[0]}
        ended["rng"] = int(torch.get_rng_state().long().sum())
    except UserError as error:
        ended = {"status": "said", "said": str(error)}
    except SystemExit as error:
        ended = {"status": "silent", "said": str(error)}
    finally:
        engine.train_step, training.build = step, build
    return {**ended, "seconds": time.monotonic() - began}


OBJECTS = {"usual": (3, 1, 0, 5), "none of them in one": (4, 0, 2, 0), "one absent": (4, None, 2, None)}
LOSSES = ("DetrConfig", "DeformableDetrConfig", "RTDetrConfig", "LwDetrConfig")


def gradients(family: str, objects: tuple, share: slice) -> torch.Tensor:
    """Of logits and boxes, side by side, for the photos of a ``share``; made up, the same ones in each process."""
    import transformers
    from transformers.loss.loss_utils import LOSS_MAPPING

    from helpers.train.losses import batched_loss, whole_batch_loss

    config = getattr(transformers, family)(num_labels=7, auxiliary_loss=False)
    queries = 30 * getattr(config, "group_detr", 1)
    random = torch.Generator().manual_seed(1)
    made = [torch.randn(4, queries, 7 + (family == "DetrConfig"), generator=random)]
    made += [torch.rand(4, queries, 4, generator=random)]
    labels = []
    for count in objects:
        classes = torch.randint(7, (count or 0,), generator=random)
        labels.append({"class_labels": classes, "boxes": torch.rand(count or 0, 4, generator=random) * 0.4 + 0.1})
        labels[-1] |= {"absent": torch.tensor(True)} if count is None else {}
    there = [k for k in range(4)[share] if share != slice(None) or objects[k] is not None]
    logits, boxes = (values[there].requires_grad_() for values in made)
    name = f"{family.removesuffix('Config')}ForObjectDetection"
    loss_function = batched_loss if family == "DetrConfig" else whole_batch_loss(LOSS_MAPPING[name])
    others = {"enc_outputs_class": logits, "enc_outputs_coord": boxes} if family == "LwDetrConfig" else {}
    labels = [labels[k] for k in there]
    loss_function(logits, labels, logits.device, boxes, config, None, None, **others)[0].backward()
    return torch.cat([logits.grad, boxes.grad], dim=-1)


def main(folder: Path) -> None:
    from accelerate import PartialState
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    PartialState(cpu=True)
    rank = int(os.environ["RANK"])
    for job in json.loads((folder / "jobs.json").read_text()):
        if job["name"] == "gradients":
            cases = [(family, name) for family in LOSSES for name in OBJECTS]
            found = {f"{f}, {name}": gradients(f, OBJECTS[name], slice(rank, None, 2)) for f, name in cases}
            save_file(found, folder / f"gradients.{rank}.safetensors")
            continue
        ended = trained(job)
        (folder / f"{job['name']}.{rank}.json").write_text(json.dumps(ended))
        if job["fault"] in ("kill", "not finite"):
            sys.exit(ended["status"] != "done")  # as a process that failed does: the others wait for it no longer
        if ended["status"] != "done":  # the next one begins without its last words
            distributed.barrier()
            distributed.distributed_c10d._get_default_store().delete_key(f"ended/{rank}")
            distributed.barrier()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(Path(sys.argv[1]))

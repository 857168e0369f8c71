"""Output folders of trainings: files of the user, and states that are not to resume."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bad_case import Case, Place, either, passes, refused
from bad_configs import training_case
from bad_models import damages, planted_pickle

STATES = ("checkpoint.pth", "mid_epoch.pth")


def arguments(place: Place, **config: Any) -> list[str]:
    """Return the arguments of a training into the folder ``new``."""
    return training_case("sound", {"max_epoch": 1, **config}, "x").build(place)


def train_before(place: Place) -> None:
    """Train one epoch and leave its last state within the epoch, as a kill does."""
    line = arguments(place, save_every="1 steps")

    def train() -> None:
        from speechllm.training.task import SpeechLLMTask
        from speechllm.training.trainer import MidEpochSaver

        MidEpochSaver.remove = lambda self: None
        SpeechLLMTask.main(cmd=line[1:])

    place.run_before(train)
    new = place.folder / "new"
    (new / "mid_epoch.pth").stat()
    for name in ("checkpoint.pth", "1epoch.pth", "latest.pth"):
        (new / name).unlink()


def cases() -> Iterator[Case]:
    """Yield outputs with files of the user, and bad states to resume from."""
    yield from outputs()
    yield from states()
    yield from changed_states()
    yield from lightning()


def outputs() -> Iterator[Case]:
    """Yield folders of the user as the output of a training."""

    def users(*names: str) -> Callable[[Place], list[str]]:
        def build(place: Place) -> list[str]:
            for name in names:
                place.write(f"new/{name}", "years of work\n")
            return arguments(place)

        return build

    for name in (
        "config.yaml", "1epoch.pth", "valid.acc.ave.pth", "tensorboard", "images/a.png",
        "thesis.txt", "checkpoint.pth", "train.log",
    ):  # fmt: skip
        check = either(refused("new"), passes())
        yield Case("training outputs", f"with {name} of the user", users(name), check,
                   seconds=60)  # fmt: skip

    def file(place: Place) -> list[str]:
        place.write("new", "years of work\n")
        return arguments(place)

    yield Case("training outputs", "a file of the user", file, refused("new"))


def foreign() -> dict[str, Any]:
    """Return objects that ``torch.save`` writes and that are no states."""
    import torch

    return {
        "a number": 5,
        "a text": "state",
        "a list": [1, 2],
        "an empty mapping": {},
        "a mapping of numbers": {1: 2},
        "weights": {"a.weight": torch.zeros(2)},
        "nothing": None,
        "an epoch alone": {"epoch": 1},
    }


def states() -> Iterator[Case]:
    """Yield states to resume from that are damaged, planted or of something else."""

    def resumed(file: str, write: Callable[[Place, Path], object]):
        def build(place: Place) -> list[str]:
            (place.folder / "new").mkdir()
            write(place, place.folder / "new" / file)
            return [*arguments(place), "--resume", "true"]

        return build

    def saved(value: Any) -> Callable[[Place, Path], object]:
        def write(place: Place, path: Path) -> None:
            import torch

            torch.save(value, path)

        return write

    def planted(place: Place, path: Path) -> None:
        path.write_bytes(planted_pickle(place.planted))

    for file in STATES:
        yield Case("training states", f"{file}: planted code", resumed(file, planted),
                   refused(file))  # fmt: skip
        for name, value in foreign().items():
            build = resumed(file, saved(value))
            yield Case("training states", f"{file}: saved {name}", build,
                       refused(file), seconds=60)  # fmt: skip
        for name, damage in damages().items():
            if name == "missing":
                continue

            def damaged(place: Place, path: Path, damage=damage) -> None:
                import torch

                torch.save({"epoch": 1, "model": {}}, path)
                damage(path)

            yield Case("training states", f"{file}: {name}", resumed(file, damaged),
                       refused(file), seconds=30)  # fmt: skip


def changed_states() -> Iterator[Case]:
    """Yield states of an interrupted epoch in which one value is not what it was."""
    changes: dict[str, Callable[[dict], object]] = {
        "as it was": lambda state: None,
        "no model": lambda state: state.pop("model"),
        "no optimizer": lambda state: state["optimizers"].clear(),
        "an empty optimizer": lambda state: state["optimizers"].__setitem__(0, {}),
        "a model of nothing": lambda state: state["model"].clear(),
        "gradients of a list": lambda state: state.update(gradients=[1]),
        "random numbers of a text": lambda state: state["ranks"][0].update(random="x"),
        "no random numbers": lambda state: state["ranks"][0].pop("random"),
        "Python's random numbers of another kind": lambda state: state["ranks"][0][
            "random"
        ].update(python=(3, (1, 2), None)),
        "batches done: -1": lambda state: state.update(done=-1),
        "batches done: 1e9": lambda state: state.update(done=10**9),
        "batches done: a text": lambda state: state.update(done="x"),
        "averages of a list": lambda state: state.update(reporter=[1]),
        "an epoch of a text": lambda state: state.update(epoch="x"),
        "ranks of a number": lambda state: state.update(ranks=5),
    }
    for name, change in changes.items():

        def build(place: Place, change=change) -> list[str]:
            import torch

            train_before(place)
            path = place.folder / "new" / "mid_epoch.pth"
            state = torch.load(path, weights_only=True)
            change(state)
            torch.save(state, path)
            return [*arguments(place), "--resume", "true"]

        check = refused("mid_epoch.pth")
        if name == "as it was":
            check = passes()
        if name == "an epoch of a text":
            check = either(check, passes())
        yield Case("training states", f"mid_epoch.pth of a training: {name}", build,
                   check, ("new/*",), seconds=60)  # fmt: skip


def lightning() -> Iterator[Case]:
    """Yield checkpoints of Lightning, FSDP and DeepSpeed for an export and a start."""

    def file(write: Callable[[Place, Path], object]) -> Callable[[Place, Path], object]:
        return write

    def planted(inner: str) -> Callable[[Place, Path], object]:
        def write(place: Place, path: Path) -> None:
            target = path / inner if inner else path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(planted_pickle(place.planted))

        return write

    def zipped(inner: str) -> Callable[[Place, Path], object]:
        """Write planted code in torch's own archive."""

        def write(place: Place, path: Path) -> None:
            import torch
            from bad_models import Planted

            target = path / inner if inner else path
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(ImportError):
                torch.save({"state_dict": Planted(place.planted)}, target)

        return write

    def saved(value: Any) -> Callable[[Place, Path], object]:
        def write(place: Place, path: Path) -> None:
            import torch

            torch.save(value, path)

        return write

    def empty_folder(place: Place, path: Path) -> None:
        path.mkdir()

    def empty_metadata(place: Place, path: Path) -> None:
        path.mkdir()
        (path / ".metadata").write_bytes(b"")

    def foreign_shards(place: Place, path: Path) -> None:
        """Write shards of other tensors, with torch's own function."""
        import torch
        from torch.distributed.checkpoint import save

        save({"state_dict": {"model.x": torch.zeros(2)}}, checkpoint_id=path,
             no_dist=True)  # fmt: skip

    def cut_shards(place: Place, path: Path) -> None:
        foreign_shards(place, path)
        for shard in path.glob("*.distcp"):
            shard.write_bytes(shard.read_bytes()[:10])

    def outside_shards(place: Place, path: Path) -> None:
        """Let the metadata name a file outside of the folder."""
        foreign_shards(place, path)
        (shard,) = path.glob("*.distcp")
        name = shard.name
        other = "/" * 1 + "x" * (len(name) - 1)
        data = (path / ".metadata").read_bytes()
        (path / ".metadata").write_bytes(data.replace(name.encode(), other.encode()))

    contents: dict[str, Callable[[Place, Path], object]] = {
        "planted code": planted(""),
        "planted code in an archive": zipped(""),
        "no state_dict": saved({"epoch": 1}),
        "a list": saved([1]),
        "a state_dict of a number": saved({"state_dict": 5}),
        "tensors of another model": saved({"state_dict": {"model.x": 5}}),
        "an empty folder": empty_folder,
        "FSDP, planted metadata": planted(".metadata"),
        "FSDP, empty metadata": empty_metadata,
        "FSDP, a cut shard": cut_shards,
        "FSDP, a file outside of the folder": outside_shards,
        "DeepSpeed, planted": planted("checkpoint/mp_rank_00_model_states.pt"),
        "DeepSpeed, planted in an archive": zipped(
            "checkpoint/mp_rank_00_model_states.pt"
        ),
        "DeepSpeed, nothing": planted("checkpoint/x"),
    }
    for name, write in contents.items():

        def exported(place: Place, write=write) -> list[str]:
            folder = place.folder / "exp" / "new"
            folder.mkdir()
            config = (place.model / "config.yaml").read_text()
            (folder / "config.yaml").write_text(config)
            write(place, folder / "step1.ckpt")
            return ["speechllm.bin.export_model", "--exp_dir", "exp/new",
                    "--checkpoint", "step1.ckpt", "--output", "new"]  # fmt: skip

        def started(place: Place, write=write) -> list[str]:
            write(place, place.folder / "start.ckpt")
            return [*arguments(place), "--init_param", "start.ckpt"]

        yield Case("Lightning checkpoints", f"export: {name}", exported,
                   refused("step1.ckpt"), seconds=60)  # fmt: skip
        yield Case("Lightning checkpoints", f"init_param: {name}", started,
                   refused("start.ckpt"), seconds=60)  # fmt: skip

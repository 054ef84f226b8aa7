"""The chorales of J. S. Bach: 382 sequences of chords, a step each quarter note."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rhovae_kernels.data.dataset import SPLITS, Dataset, check_choice
from rhovae_kernels.data.download import fetch
from rhovae_kernels.data.sequences import pad

FILE = "jsb-chorales-quarter.json"

LOWEST, PITCHES = 21, 88
"""The first of the MIDI pitches that a step has a feature for, and how many: a piano's keys."""


def load(split: str, root: Path, mirror: str | None) -> Dataset:
    """A split of the chorales, each as long as the longest of all of them, NaN beyond its end.

    Feature p of a step is 1 where the pitch 21 + p sounds, in MIDI's numbers, and 0 elsewhere; all
    are 0 in silence.

    Args:
        split: "train", "valid" or "test": 229, 76 and 77 chorales of 25 to 160 steps.
        root: directory of the data sets; the file is taken from root/jsb or from root itself, and
            downloaded into root/jsb where it is in neither.
        mirror: see `download.fetch`.

    Returns:
        Values (N, 160, 88), each 0, 1 or NaN.

    Raises:
        ValueError: an unknown split; the file is truncated, corrupted or holds other things.
        OSError: a download failed.

    Source:
        Boulanger-Lewandowski, Bengio and Vincent, 2012, "Modeling temporal dependencies in
        high-dimensional sequences: application to polyphonic music generation and transcription",
        https://arxiv.org/abs/1206.6392, for the split; the file is that of
        https://github.com/czhuang/JSB-Chorales-dataset.
    """
    check_choice("split", split, SPLITS)
    places = (root / "jsb" / FILE, root / FILE)
    path = next((place for place in places if place.is_file()), None)
    path = path or fetch("jsb", places[0], mirror)
    found = _read(path)
    rolls = {name: [_roll(path, chorale) for chorale in found[name]] for name in found}
    steps = max(len(roll) for of_split in rolls.values() for roll in of_split)
    chosen = pad(rolls[split])
    values = torch.full((len(chosen), steps, PITCHES), torch.nan)
    values[:, : chosen.shape[1]] = chosen
    return Dataset("jsb", split, values)


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: truncated or corrupted, no JSON ({error})") from error
    if not isinstance(found, dict) or any(not isinstance(found.get(s), list) for s in SPLITS):
        raise ValueError(f"{path}: not the chorales, which are lists under {', '.join(SPLITS)}")
    return {split: found[split] for split in SPLITS}


def _roll(path: Path, chorale: Any) -> Tensor:
    """A chorale, a list of lists of pitches, as its piano roll (T, 88)."""
    try:
        steps = [[int(pitch) - LOWEST for pitch in step] for step in chorale]
        outside = [p for step in steps for p in step if not 0 <= p < PITCHES]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: a chorale is no list of lists of pitches ({error})") from error
    if outside or not steps:
        what = f"the pitch {outside[0] + LOWEST}" if outside else "a chorale of no step"
        last = LOWEST + PITCHES - 1
        raise ValueError(f"{path}: holds {what}; pitches are from {LOWEST} to {last}")
    roll = torch.zeros(len(steps), PITCHES)
    for row, step in zip(roll, steps, strict=True):
        row[step] = 1
    return roll

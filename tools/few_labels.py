#!/usr/bin/env python3
"""Prints a Markdown table of what a model is worth with few labels: see qgis_iic.training.few_labels.

python tools/few_labels.py models/iic_rgb_small.onnx --places models/places.toml --place Banepa --minutes 5
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from qgis_iic.training.few_labels import compare_learners, table
from qgis_iic.training.places import load_protocol


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--places", type=Path, required=True, help="protocol with regions to fit and to score on")
    parser.add_argument("--place", required=True, help="name of one of them")
    parser.add_argument("--only", default="", help="parts of the labels whose name holds this text, as '5 %%'")
    parser.add_argument("--data", type=Path, help="folder of imagery and labels")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training")
    parser.add_argument("--draws", type=int, default=1, help="of the labels, each with random weights of its own")
    parser.add_argument("--threads", type=int, help="of the processor")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    places = {place.name: place for place in load_protocol(arguments.places, arguments.data).places}
    if arguments.place not in places:
        parser.error(f"the protocol has no place {arguments.place}, only {', '.join(places)}")
    rows = [
        row
        for seed in range(arguments.draws)
        for row in compare_learners(
            arguments.model, places[arguments.place], arguments.minutes, seed, arguments.only, _tell
        )
    ]
    print(table(rows))


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()

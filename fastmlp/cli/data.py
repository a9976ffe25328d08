"""The command ``data``: show or download the data.

fastmlp data info        print sizes, classes, counts and statistics
fastmlp data samples     draw ten training images of each class
fastmlp data download    download CIFAR-10 if it is missing
"""

from __future__ import annotations

from pathlib import Path

import torch

from fastmlp.cli.options import add_data_arguments, add_source_arguments
from fastmlp.cli.parser import ArgumentParser
from fastmlp.data.dataset import Dataset, load_dataset
from fastmlp.data.splits import split_dataset
from fastmlp.data.transforms import channel_statistics
from fastmlp.utils.untrusted import printable


def main(argv: list[str]) -> int:
    """Run the command and return its exit code; raises UserError for a user's mistake."""
    options = build_parser().parse_args(argv)

    dataset = load_dataset(options.dataset, options.data_dir, options.data_url)
    if options.command == "info":
        print(describe(dataset, options.split, options.test_set))
    elif options.command == "samples":
        from fastmlp.plotting.images import draw_samples  # matplotlib takes a second to import

        draw_samples(dataset, Path(options.out))
        print(f"Ten images of each class of {dataset.source} are in {options.out}")
    else:
        print(f"CIFAR-10 is in {dataset.source}")
    return 0


def build_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser(prog="fastmlp data", description="Shows or fetches the data.")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="print sizes, classes, counts and statistics")
    add_data_arguments(info)
    samples = commands.add_parser("samples", help="draw ten training images of each class")
    add_source_arguments(samples)
    samples.add_argument("--out", default="samples.png", help="image file to write")
    download = commands.add_parser("download", help="download CIFAR-10 if it is missing")
    add_source_arguments(download, dataset=False)
    download.set_defaults(dataset="cifar10")
    return parser


def describe(dataset: Dataset, split: str = "60/20/20", test_set: str = "split") -> str:
    """Return sizes, classes, counts and statistics of a data set as lines of text."""
    parts = split_dataset(dataset, split, test_set)
    assert parts.test is not None  # split_dataset always makes one
    columns = {"train": parts.train, "val": parts.val, "test": parts.test}
    counts = [
        torch.bincount(part.labels, minlength=len(dataset.classes)).tolist()
        for part in columns.values()
    ]
    means, deviations = channel_statistics(parts.train.images)
    lines = [
        f"data set   {dataset.name}",
        f"source     {dataset.source}",
        f"images     {len(dataset.images):,} training {tuple(dataset.images.shape[1:])} and"
        f" {len(dataset.test_images):,} official test",
        f"dtype      {str(dataset.images.dtype).removeprefix('torch.')}, values from"
        f" {dataset.images.min()} to {dataset.images.max()}",
        f"classes    {len(dataset.classes)}",
        f"split      {split}, test set: {test_set}",
        "",
        f"{'images of':14}" + "".join(f"{name:>8}" for name in columns),
    ]
    for name, *row in zip(map(printable, dataset.classes), *counts, strict=True):
        lines.append(f"{name:14}" + "".join(f"{count:8,}" for count in row))
    lines.append(f"{'all':14}" + "".join(f"{sum(column):8,}" for column in counts))
    lines += [
        "",
        f"{'training part':14}" + "".join(f"{name:>8}" for name in _planes(len(means))),
    ]
    for name, values in (("mean / 255", means), ("std / 255", deviations)):
        lines.append(f"{name:14}" + "".join(f"{value / 255:8.4f}" for value in values))
    return "\n".join(lines)


def _planes(count: int) -> tuple[str, ...]:
    return ("red", "green", "blue") if count == 3 else ("grey",)

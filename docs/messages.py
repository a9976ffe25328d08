"""Write the tables of docs/troubleshooting.md: every message, from the source that says it.

``python docs/messages.py`` fills the page in; a test compares the two.
"""

from __future__ import annotations

import re
from pathlib import Path

from message_finder import Message, Module, has_words

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
TRAINING = "fastmlp/training"
TOPICS = {
    "build": ["setup.py", "cuda_toolkit.py", "build_backend.py", "fastmlp/ops/_load.py"],
    "commands": ["fastmlp/cli/*.py", f"{TRAINING}/config.py", f"{TRAINING}/options.py"],
    "tables": [
        *(f"fastmlp/data/{name}.py" for name in ("arrays", "tables", "encoding", "targets")),
        *(f"{TRAINING}/{name}.py" for name in ("own_data", "predictor")),
    ],
    "images": ["fastmlp/data/*.py"],
    "runs": [f"{TRAINING}/*.py", "fastmlp/utils/*.py"],
    "sweeps": ["fastmlp/sweeps/*.py", "fastmlp/report/runner.py"],
    "engines": ["fastmlp/engines/*.py"],
}
"""The sources of each of the page's tables; a file belongs to the first that names it."""
CURES = {
    r"setup.py: .*no C\+\+ compiler": "install g++ (Debian: `apt install g++`), then fastmlp again",
    r".*_load.py: .*'pip install": "run `pip install -e .` in the repository",
    r".*compare.py: None": "let them train for longer",
    r".*show.py: There is no program": "copy the file to where there is one",
    r".*show.py: ": "`fastmlp train --resume` ends the run",
    r".*tables.py: .* dimensions; one or two": "save arrays of one or two dimensions",
    r".*(tables|encoding|targets|own_data).py: .*(only|those are|has no column|has no option)": (
        "name one of those"
    ),
    r".*callbacks.py: .*removed": "nothing: the folder is made again",
    r".*: .*the save before it": "nothing: it goes on from there",
    r".*api.py: .* best parameters": "go on from these",
    r".*run_directory.py: .*(must hold|of shape|not finite)": "train the network again",
    r".*run_directory.py: .* last saved": "go on from these parameters, in a new run",
    r".*errors.py: .*GPU has failed": "`--resume` goes on from what was saved, which is whole",
}
"""What to do about messages, by file and text, that do not say it themselves or say it in words
that need the sentence before; the first that holds."""
OTHERWISE = {
    r"setup.py: .* but ": "mend that, or leave `FASTMLP_CUDA` out",
    r"setup.py: ": "nothing, unless you want the CUDA kernels",
    r"cuda_toolkit.py: nothing to build": "name others in `TORCH_CUDA_ARCH_LIST`",
    r"cuda_toolkit.py: .* has no ": "install the rest of it, or set `CUDA_HOME` to another",
    r"cuda_toolkit.py: ARCH ": "nothing, unless you want to build for it",
    r".*_load.py: this PyTorch": "nothing; for a GPU, install one of CUDA",
    r".*_load.py: ": "see [above](#undefined-symbol); `fastmlp info` says more",
    r".*info.py: ": "see [GPUs](gpu.md)",
    r".*parser.py: ": "correct the flag that the message, argparse's, names",
    r".*train.py: ": "leave that option out, or start a new run",
    r".*(encoding|targets|pixels|predictor).py: ": "train the network again",
    r".*arrays.py: ": "save numbers or texts by `numpy.save` or `numpy.savez`",
    r".*config.py: Cannot read": "check the path",
    r".*config.py: ": "correct that line",
    r".*own_data.py: ": "leave that class out",
    r".*(pickles|images).py: ": "put the official file there",
    r".*synthetic.py: ": "see [no network](#no-network-no-data)",
    r".*dataset.py: downloading": "leave `download=False` out",
    r".*dataset.py: ": "see [no network](#no-network-no-data)",
    r".*(download|http_client).py: ": "run again, or name a mirror in `$FASTMLP_CIFAR10_URL`",
    r".*transforms.py: ": "pass a smaller N in `augment`",
    r".*lr_finder.py: ": "the arguments that it has are in the [reference](api/training.md)",
    r".*(checkpoint|run).py: ": "pass `--resume` the folder of a run whose files are its own",
    r".*errors.py: ": "name a file",
    r".*files.py: ": "pass another folder, or change its mode",
    r".*(formats|value_checks|pickled|predict).py: ": "put a copy of the file back, or train again",
    r".*registry.py: .*last GPU": "name that one, or one before it",
    r".*engines/.*(: block_steps|these steps)": "leave `block_steps` out",
    r".*engines/base.py: a state": "pass one of a run with this optimizer",
    r".*engines/.*(momentum|weights of samples)": "leave them out",
    r".*engines/.*bfloat16 wants": "leave `precision` out, or convert the model to float32",
    r".*engines/": "leave `engine` out: `auto` takes one that can",
}
"""The same for messages that say nothing of it."""


def parts(message: Message) -> tuple[str, str]:
    """Return what was wrong, and what to do: by CURES, or what stands behind the last semicolon, or
    what a value must be, or by OTHERWISE."""
    text = re.sub(r"(?<!\.)\.$", "", message.text)
    what, found, then = text.rpartition("; ")
    wanted = re.search(r"must (?:be|end in) (.+?)(?:[,;] got|, and |, the |: |$)", text)
    if cure := _cure(message, CURES):
        return text, cure
    if found and not then.startswith("got "):
        return what if has_words(what) else text, then
    if wanted is not None:
        return text, f"pass {wanted[1]}"
    if cure := _cure(message, OTHERWISE):
        return text, cure
    raise ValueError(f"{message.file} does not say what to do in {text!r}, nor does OTHERWISE")


def _cure(message: Message, cures: dict[str, str]) -> str | None:
    told = f"{message.file}: {message.text}"
    return next((cure for key, cure in cures.items() if re.match(key, told)), None)


def tables(root: Path = ROOT) -> dict[str, str]:
    """Return the page's tables by topic, each message once, in the order of files and lines."""
    found: dict[str, str] = {}
    seen: set[Path] = set()
    for topic, patterns in TOPICS.items():
        paths = dict.fromkeys(p for each in patterns for p in sorted(root.glob(each)))
        rows = ["| message | what to do | said by |", "|---|---|---|"]
        for path in (path for path in paths if path not in seen):
            for message in dict.fromkeys(Module(root, path).messages()):
                what, cure = parts(message)
                shown = f"`{'' if message.whole else '... '}{what}`"
                rows.append(f"| {shown} | {cure} | `{message.file}` |")
        seen |= set(paths)
        found[topic] = "\n".join(rows)
    return found


def filled(page: str, root: Path = ROOT) -> str:
    """Return the page with its tables, each of which ends at the next ``<!-- end -->``."""
    for topic, table in tables(root).items():
        begin = f"<!-- messages of {topic} -->\n"
        if begin not in page:
            raise ValueError(f"{PAGE.name} has no place for the messages of {topic}")
        before, _, after = page.partition(begin)
        page = f"{before}{begin}{table}\n<!-- end -->{after.partition('<!-- end -->')[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

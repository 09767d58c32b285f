"""Export a trained classifier for machines without torch.

    sst2 export runs/NAME --format onnx
    sst2 export runs/NAME --format onnx --int8 --validation_file dev.tsv

Writes a folder with the model as ONNX, in float32 and with `--int8` quantized as well, tokenizer, configuration, a card
and all figures as JSON. It appears only after its logits were compared with torch's.
"""

import argparse
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sst2.config.class_names import are_generic, in_words, names_in_order, order_of_classes
from sst2.config.command_line import OneLineParser
from sst2.config.flag_groups import LABEL_NAMES
from sst2.data.checked_rows import SST2, read_file
from sst2.data.file_formats import Columns
from sst2.data.mapped_dataset import batches_of_sentences, mapped_dataset, rows_of
from sst2.inference.model_argument import MODEL_HELP, model_name
from sst2.runs.run_folder import RunFolder, is_run
from sst2.utils.console import say
from sst2.utils.errors import UserError
from sst2.utils.text_files import problem_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PROGRAM = "sst2 export"

logger = logging.getLogger(__name__)


def command_parser() -> OneLineParser:
    """The command's flags."""
    parser = OneLineParser(prog=PROGRAM, description="Export a trained classifier for small machines.")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="the only one")
    parser.add_argument("--int8", action="store_true", help="a quantized model as well: a quarter of the size, faster")
    parser.add_argument(
        "--validation_file", metavar="FILE", help="csv, tsv, json lines or parquet with sentence, label to measure on"
    )
    parser.add_argument("--sentence_column", default=SST2.sentence, metavar="NAME", help="that column of the file")
    parser.add_argument("--label_column", default=SST2.label, metavar="NAME", help="that column of the file")
    parser.add_argument(
        "--label_names",
        nargs="+",
        metavar="NAME",
        help="the classes 0, 1 and so on in the file; default: NEGATIVE POSITIVE, or the model's where they are others",
    )
    parser.add_argument(
        "--max_length", type=int, metavar="TOKENS", help="longer sentences are cut; default: as in training"
    )
    parser.add_argument("--output_dir", metavar="DIR", help="folder to write; default: beside the model, e.g. RUN/onnx")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace an earlier export in it")
    return parser


def main(argv: Sequence[str]) -> None:
    """Raises UserError: flags, model or sentences that cannot be used."""
    arguments = command_parser().parse_args(argv)
    source, title, default_dir = locate(arguments.model)
    if arguments.output_dir is None and default_dir is None:
        raise UserError(
            f"MODEL {arguments.model} is no local folder: check its name, or add --output_dir DIR if it is on the hub"
        )
    output_dir = Path(os.path.expanduser(arguments.output_dir)) if arguments.output_dir else default_dir
    assert output_dir is not None
    output_dir = output_dir.absolute()
    check_output_dir(output_dir, arguments.overwrite_output_dir)
    if arguments.validation_file is not None:
        arguments.validation_file = os.path.expanduser(arguments.validation_file)
        if problem := problem_of(arguments.validation_file, read_once=True):
            raise UserError(f"--validation_file {arguments.validation_file} {problem}")
    report = export(source, title, output_dir, arguments)

    from sst2.inference.onnx_export.onnx_card import table

    say(table(report))
    say(f"ONNX model, opset {report['opset']}, equal to torch's: {output_dir}")


def locate(name: str) -> tuple[str, str, Path | None]:
    """What to load, a name for it, and where its export goes unless told otherwise (None: it is not here).

    Raises:
        UserError: as `model_name`.
    """
    source = model_name(name)
    if not Path(source).is_dir():
        return source, name, None
    place = Path(source).resolve()
    if place.name == "model" and is_run(place.parent):
        return source, place.parent.name, RunFolder(place.parent).onnx
    return source, place.name, place.with_name(f"{place.name}-onnx")


def check_output_dir(folder: Path, overwrite: bool) -> None:
    """Raises UserError: something is there that must not be touched."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file: name a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        names = {"manifest.json", *json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, LookupError, TypeError):
        names = set()
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in names)
    if foreign or "export.json" not in names:
        raise UserError(f"--output_dir {folder} holds other files, {foreign[0]} for one: name another folder")
    if not overwrite:
        raise UserError(
            f"--output_dir {folder} holds an export: --overwrite_output_dir replaces it, another --output_dir leaves "
            "it alone"
        )


def read_validation(arguments: argparse.Namespace, classes: Sequence[str]) -> "tuple[str, Dataset] | None":
    """Name and sentences of the file, if one is given, labeled by the numbers of the model's classes.

    The file's numbers 0, 1 and so on stand for the names of `--label_names`, else for SST-2's, else, where the model's
    classes are others, for the model's. Which class of the model a name means is decided by the names alone; where the
    two sets of names differ, 0, 1 and so on are the model's, which is said. Raises UserError: a row cannot be used, or
    `--label_names` are not as many as the model's classes.
    """
    if arguments.validation_file is None:
        return None
    if arguments.label_names and len(arguments.label_names) != len(classes):
        given = " ".join(arguments.label_names)
        raise UserError(
            f"--label_names {given} cannot work: give {len(classes)} names, as the model's classes are "
            f"{in_words(classes)}"
        )
    is_sentiment = (len(classes) == 2 and are_generic(classes)) or order_of_classes(classes, LABEL_NAMES) is not None
    names = arguments.label_names or (LABEL_NAMES if is_sentiment else classes)
    named_by = "--label_names" if arguments.label_names else "" if is_sentiment else "the model"
    columns = Columns(arguments.sentence_column, arguments.label_column, tuple(names), named_by=named_by)
    data = read_file(arguments.validation_file, labels_required=True, columns=columns)
    name = Path(arguments.validation_file).name
    order = order_of_classes(classes, names)
    if order is None:
        pairs = [f"{own} is taken for the model's class {its}" for own, its in zip(names, classes, strict=True)]
        logger.warning("%s: their names do not tell", ", ".join(pairs))
        return name, data
    rows = ((sentence, order[label]) for sentence, label in rows_of(data))
    return name, mapped_dataset(rows, classes)


def export(source: str, title: str, output_dir: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Load the model and write its export, or nothing.

    Returns:
        What `export.json` holds.

    Raises:
        UserError: a package is missing, it is no such model, a row of the validation file cannot be used, or the folder
            cannot be written.
        RuntimeError: an exported model is not the model.
    """
    from sst2.inference.onnx_export.folder import write_files
    from sst2.inference.onnx_export.onnx_model import require_onnx
    from sst2.models.architecture import max_positions
    from sst2.models.export import stock_classifier
    from sst2.models.loading import load_classifier
    from sst2.utils.atomic_folder import write_atomic_folder
    from sst2.utils.logs import start_logging

    require_onnx()
    start_logging(is_main=True)
    loaded, tokenizer = load_classifier("MODEL", source)
    limit = max_positions(loaded.config)
    if arguments.max_length is not None:
        if not 3 <= arguments.max_length <= limit:
            raise UserError(f"--max_length {arguments.max_length} cannot work: give 3 to {limit}, as the model takes")
        tokenizer.model_max_length = arguments.max_length
    id2label: Any = loaded.config.id2label
    data = read_validation(arguments, names_in_order(id2label))
    if data is not None:
        _warn_of_cut_sentences(*data, tokenizer)
    model = stock_classifier(loaded.config, loaded.state_dict()).eval()
    reports: list[dict[str, Any]] = []
    try:
        write_atomic_folder(
            output_dir,
            lambda folder: reports.append(write_files(folder, model, tokenizer, title, arguments.int8, data)),
        )
    except OSError as error:
        raise UserError(
            f"--output_dir {output_dir} cannot be written ({error.strerror}): make room, or name another folder"
        ) from None
    return reports[0]


def _warn_of_cut_sentences(name: str, data: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> None:
    from sst2.data.tokenization import encode, encoder_of

    encoder = encoder_of(tokenizer, tokenizer.model_max_length)
    cut = sum(encode(encoder, batch)[1] for batch in batches_of_sentences(data))
    if cut:
        logger.warning(
            "%s: %d of %d sentences have more than %d tokens: their ends are cut off; --max_length takes more",
            *(name, cut, len(data), tokenizer.model_max_length),
        )

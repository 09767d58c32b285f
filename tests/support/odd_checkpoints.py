"""Checkpoints of odd forms: tokenizers of every architecture, and oddities of a config.json, all tiny and random."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from sst2.data.sample import sample_sentences

BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}  # padding has the id 1
SENTENCES = [
    *sample_sentences("validation")[0][:8],
    "A Gripping, FUNNY Film",
    "Café naïve, déjà vu: señor",
    "film 電影很好 映画",
    '🎬 it\'s "so-so" …  two  spaces',
    "between [MASK] and </s>",
]


@cache
def trained(kind: str) -> str:
    """A tokenizer, as the text of its tokenizer.json."""
    texts = sample_sentences("train")[0][:1500]
    texts = [*texts, *(text.title() for text in texts[:500]), *(20 * ["café naïve déjà vu señor Å 電影很好"])]
    special = ROBERTA if kind == "byte-level BPE" else BERT
    # As in sst2.data.sample: letters within or at the end of a word are named up front, or their numbers, and so the
    # merges, would follow a randomly seeded hash map.
    inner = {"WordPiece": "##{}", "character": "{}</w>"}.get(kind.split(maxsplit=1)[0], "")
    read = texts if kind == "WordPiece cased" else [text.lower() for text in texts]
    letters = {letter for text in read for letter in (*text, *normalize("NFD", text))}
    reserved = [inner.format(letter) for letter in sorted(letters - {" "}) if inner]
    size: dict[str, Any] = {"vocab_size": 500, "special_tokens": [*special.values(), *reserved], "show_progress": False}
    first, last = special["cls"], special["sep"]
    if kind.startswith("WordPiece"):
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(
            lowercase=kind.split()[1] != "cased", strip_accents=False if "accents" in kind else None
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(**size)
    elif kind == "byte-level BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif kind == "character BPE":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(**size, end_of_word_suffix="</w>")
    elif kind == "metaspace BPE":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(**size)
    elif kind == "Unigram":
        tokenizer = Tokenizer(unigram(texts, [*special.values()], 500))
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.add_special_tokens([*special.values()])
        trainer = None
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(**size)
    if trainer:
        tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)]
    )
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in reserved]
    return json.dumps(content)


def unigram(texts: list[str], special: list[str], size: int) -> models.Unigram:
    """Letters and the most frequent words, by their frequency: the library's trainer gives others in each process."""
    words = Counter(f"▁{word}" for text in texts for word in normalize("NFKC", text).split())
    counts = Counter(letter for word, count in words.items() for letter in word for _ in range(count)) | words
    ordered = sorted(counts, key=lambda piece: (len(piece) > 1, -counts[piece], piece))[: size - len(special)]
    total = counts.total()
    pieces = [(token, 0.0) for token in special] + [(piece, log(counts[piece] / total)) for piece in ordered]
    return models.Unigram(pieces, special.index("[UNK]"))


@dataclass(frozen=True)
class Form:
    """A checkpoint.

    Attributes:
        kind: of tokenizer.
        settings: of tokenizer_config.json; special tokens are added.
        change: of the tokenizer, before it is written.
        files: what is written of it.
        config: put into config.json.
        weights: a change of the tensors by name.
        refused: part of the message by which it is refused; by prediction alone where `trains`.
        trains: whether it is trained all the same.
        beyond_pipeline: whether `pipeline` fails of it, although the model and its tokenizer are whole.
    """

    kind: str = "WordPiece uncased"
    settings: dict[str, Any] | None = None
    change: Callable[[Tokenizer], object] = lambda tokenizer: None
    files: str = "tokenizer.json"
    config: dict[str, Any] | None = None
    weights: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda tensors: tensors
    refused: str = ""
    trains: bool = False
    beyond_pipeline: bool = False

    def write(self, folder: Path) -> Path:
        """Make the folder, with random weights and a head that finds some sentences positive and some not."""
        tokenizer = Tokenizer.from_str(trained(self.kind))
        self.change(tokenizer)
        size = max(tokenizer.get_vocab().values()) + 1
        torch.manual_seed(3)
        model = DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=size, dim=32, n_layers=2, n_heads=4, hidden_dim=64, initializer_range=0.2)
        )
        spread_out(model.eval(), tokenizer)
        model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text()) | (self.config or {})
        (folder / "config.json").write_text(json.dumps(config))
        save_file(self.weights(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
        if self.files == "tokenizer.json":
            tokenizer.save(str(folder / "tokenizer.json"))
        else:
            vocabulary = tokenizer.get_vocab()
            (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=lambda word: vocabulary[word])) + "\n")
        tokens = ROBERTA if self.kind == "byte-level BPE" else BERT
        settings = {f"{name}_token": token for name, token in tokens.items()} | (self.settings or {})
        settings = {name: value for name, value in settings.items() if value != "absent"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder


@torch.no_grad()
def spread_out(model: DistilBertForSequenceClassification, tokenizer: Tokenizer) -> None:
    """Have the head find half of the sentences positive, some of them surely, so that other ids give other answers."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    ids = [plain.encode(text).ids[:40] for text in SENTENCES]
    logits = torch.cat([model(input_ids=torch.tensor([row or [0]])).logits for row in ids])
    positive = logits[:, 1] - logits[:, 0]
    scale = 1.5 / positive.std()
    model.classifier.weight.mul_(scale)
    model.classifier.bias.copy_(torch.stack([scale * positive.median(), torch.tensor(0.0)]))


def pad_and_cut(tokenizer: Tokenizer) -> None:
    tokenizer.enable_padding(length=64, direction="left")
    tokenizer.enable_truncation(6)


def add_tokens(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("gripping", single_word=True), AddedToken("Café", normalized=False, lstrip=True)])


def without_first_token(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])


def in_half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in tensors.items()}


def without_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "classifier" not in name}


def of_three(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ("classifier.weight", "classifier.bias")
    return tensors | {name: torch.cat([tensors[name], tensors[name][:1]]) for name in names}


FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
NAMED = {"tokenizer_class": "DistilBertTokenizer"}
ANOTHER = "differently from its tokenizer.json"
TOKENIZERS = {
    "uncased, DistilBertTokenizer": Form(settings=NAMED),
    "uncased, BertTokenizer": Form(settings={"tokenizer_class": "BertTokenizer", "do_lower_case": True}),
    "uncased, no class": Form(settings={"do_lower_case": True, "model_max_length": 512}),
    "uncased, any class": Form(settings=FAST),
    "uncased, vocab.txt": Form(settings={"do_lower_case": True}, files="vocab.txt"),
    "cased, vocab.txt": Form("WordPiece cased", {"do_lower_case": False}, files="vocab.txt"),
    "cased, any class": Form("WordPiece cased", FAST),
    "cased, DistilBertTokenizer": Form("WordPiece cased", NAMED | {"do_lower_case": False}),
    "cased, rebuilt": Form("WordPiece cased", NAMED, refused=ANOTHER),
    "uncased, rebuilt": Form(settings={"do_lower_case": False}, refused=ANOTHER),
    "accents, any class": Form("WordPiece uncased accents", FAST),
    "accents, DistilBertTokenizer": Form("WordPiece uncased accents", NAMED | {"strip_accents": False}),
    "accents, rebuilt": Form("WordPiece uncased accents", NAMED, refused=ANOTHER),
    "byte-level BPE, any class": Form("byte-level BPE", FAST),
    "byte-level BPE, RobertaTokenizer": Form("byte-level BPE", {"tokenizer_class": "RobertaTokenizer"}),
    "byte-level BPE, rebuilt": Form("byte-level BPE", NAMED, refused=ANOTHER),
    "character BPE, any class": Form("character BPE", FAST),
    "character BPE, rebuilt": Form("character BPE", NAMED, refused=ANOTHER),
    "metaspace BPE, any class": Form("metaspace BPE", FAST),
    "Unigram, any class": Form("Unigram", FAST),
    "Unigram, XLMRobertaTokenizer": Form("Unigram", {"tokenizer_class": "XLMRobertaTokenizer"}, refused=ANOTHER),
    "Unigram, rebuilt": Form("Unigram", NAMED, refused=ANOTHER),
    "words, any class": Form("words", FAST),
    "no first token": Form(settings=FAST, change=without_first_token, refused="puts no token such as"),
    "padded and cut": Form(settings=FAST, change=pad_and_cut),
    "padded left": Form(settings=FAST | {"padding_side": "left"}),
    "added tokens": Form(settings=FAST, change=add_tokens),
    "no padding token": Form(settings=FAST | {"pad_token": "absent"}, refused="has no padding token"),
    "another padding token": Form(settings=FAST | {"pad_token": "[SEP]"}),
    "special tokens split": Form(settings=FAST | {"split_special_tokens": True}, refused="as no tokenizer.json can"),
    "slow": Form(settings={"tokenizer_class": "CanineTokenizer"}, refused="has no fast form"),
    "no length": Form(settings=FAST | {"model_max_length": 0}, refused="cuts sentences to 0 tokens"),
    "length as text": Form(settings=FAST | {"model_max_length": "512"}, refused="not supported between"),
    "remote code": Form(settings=FAST | {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}),
}
CONFIGS = {
    "problem_type single": Form(config={"problem_type": "single_label_classification"}),
    "problem_type several": Form(
        config={"problem_type": "multi_label_classification"}, refused="several labels", trains=True
    ),
    "problem_type regression": Form(config={"problem_type": "regression"}, refused="numbers", trains=True),
    "return_dict": Form(config={"return_dict": False}, beyond_pipeline=True),
    "output_attentions": Form(config={"output_attentions": True}),
    "output_hidden_states": Form(config={"output_hidden_states": True}),
    "torchscript": Form(config={"torchscript": True}),
    "chunk_size_feed_forward": Form(config={"chunk_size_feed_forward": 4}, beyond_pipeline=True),
    "pruned_heads": Form(config={"pruned_heads": {"0": [1]}}),
    "tie_word_embeddings": Form(config={"tie_word_embeddings": False}),
    "generation": Form(config={"max_length": 20, "num_beams": 4, "do_sample": True, "temperature": 0.5}),
    "decoder": Form(config={"is_decoder": True, "add_cross_attention": True, "use_cache": True}),
    "gradient_checkpointing": Form(config={"gradient_checkpointing": True}),
    "unknown fields": Form(config={"layer_norm_eps": 1e-5, "finetuning_task": "mnli", "sst2": [1, None]}),
    "half precision": Form(config={"dtype": "float16"}, weights=in_half),
    "dtype of old": Form(config={"torch_dtype": "bfloat16"}),
    "odd dtype": Form(config={"dtype": "float99"}, refused="float99"),
    "quantized": Form(config={"quantization_config": {"quant_method": "bitsandbytes"}}, refused="is quantized"),
    "odd quantization": Form(config={"quantization_config": {"bits": 4}}, refused="is quantized"),
    "flash attention": Form(config={"attn_implementation": "flash_attention_2"}, beyond_pipeline=True),
    "kernel of the hub": Form(config={"_attn_implementation": "kernels-community/flash-attn2"}, beyond_pipeline=True),
    "another kernel of the hub": Form(
        config={"attn_implementation": "evil/x", "use_kernels": True}, beyond_pipeline=True
    ),
    "weights elsewhere": Form(config={"transformers_weights": "../other.safetensors"}, beyond_pipeline=True),
    "sinusoidal": Form(config={"sinusoidal_pos_embds": True}),
    "another activation": Form(config={"activation": "gelu_new"}),
    "no such activation": Form(config={"activation": "nonsense"}, refused="nonsense"),
    "heads that do not fit": Form(config={"n_heads": 5}, refused="must divide"),
    "heads below none": Form(config={"n_heads": -1}, refused="has n_heads -1"),
    "width as text": Form(config={"dim": "32"}, refused="expected int, got str"),
    "fewer layers": Form(config={"n_layers": 1}),
    "more layers": Form(config={"n_layers": 3}, refused="lacks"),
    "fewer positions": Form(config={"max_position_embeddings": 100}, refused="lacks 1 weights"),
    "three classes": Form(config={"id2label": {"0": "a", "1": "b", "2": "c"}}, weights=of_three),
    "no head": Form(weights=without_head, refused="no trained classification head", trains=True),
    "another padding": Form(config={"pad_token_id": 7}),
    "padding out of reach": Form(config={"pad_token_id": 10**6}, refused="Padding_idx", trains=True),
    "tokenizer's class": Form(config={"tokenizer_class": "BertTokenizer"}),
    "remote code for the model": Form(config={"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}),
    "another model": Form(config={"model_type": "bert"}, refused="weights of a BERT"),
    "no such model": Form(config={"model_type": "nonsense"}, refused="nonsense"),
}
FORMS = TOKENIZERS | CONFIGS

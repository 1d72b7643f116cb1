"""How often healthy output is taken for a loop, and loops for healthy; the same for random-token prompts.

    pip install mistral-common sentencepiece
    python bench/degenerate.py [--outputs 300] [--seed 1] [--tokenizer tekken|sentencepiece]

Prints the tables of `docs/degenerate-output.md`. The corpus is what this machine has: sources of Python's standard
library and of /usr/include, README files of installed packages (in their METADATA), the manual pages and licences
of a Linux distribution, the translated messages of its programs, and the bundled sample. What is missing is left
out, and the first table says what was used. The tokenizer is the one that the package mistral-common carries
(tekken, September 2024: 130,072 tokens of many scripts); no network is used.
"""

from __future__ import annotations

import argparse
import base64
import gettext
import gzip
import json
import platform
import random
import re
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pytest_speedbench.data import load
from pytest_speedbench.data.random_text import RANDOM_DISORDER, disorder, looks_random
from pytest_speedbench.data.sample import passages
from pytest_speedbench.engines.reference.decoding import Decoding
from pytest_speedbench.engines.reference.models import ModelPair
from pytest_speedbench.engines.reference.randomness import Randomness, digest
from pytest_speedbench.engines.reference.vocabulary import built_in
from pytest_speedbench.metrics.degenerate import repeats_itself

LENGTHS = (64, 128, 256, 512, 1024, 4096)
CHARACTERS_PER_KIND = 1_500_000
CHARACTERS_PER_FILE = 60_000
MANUAL_LANGUAGES = ("de", "fr", "es", "it", "pl", "ru", "ja", "ko", "zh_CN")
MESSAGE_LANGUAGES = ("ar", "he", "hi", "ta", "th", "tr", "ja", "zh_CN")
COUNTERS = (
    "Item {i}: the quick check passed.\n",
    "{i}. I will try again.\n",
    "Step {i}: add the two numbers and write the result down before going on to the next one.\n",
    '  {{"id": {i}, "name": "user{i}", "active": true}},\n',
    "    assert f({i}) == {square}\n",
    "x_{i} = {i}\n",
    "| {i} | value | ok |\n",
    "On day {i} the sun rose at {square}, and the boat went out. ",
)

Texts = Mapping[str, Sequence[str]]
Outputs = Mapping[str, Sequence[Sequence[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Error rates of the checks for degenerate output and input.")
    parser.add_argument("--outputs", type=int, default=300, help="of each kind and length, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", choices=("tekken", "sentencepiece"), default="tekken")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    encoding = tekken() if arguments.tokenizer == "tekken" else SentencePiece()
    texts = corpus(rng)
    token_ids = {kind: [encoding.encode_ordinary(text) for text in found] for kind, found in texts.items()}
    print(f"Python {platform.python_version()}, seed {arguments.seed}, {encoding.n_vocab:,} tokens\n")
    print_healthy(token_ids, arguments.outputs, rng)
    print_loops(token_ids, encoding, rng)
    if arguments.tokenizer != "tekken":
        return
    print_reference()
    print_prompts(token_ids, encoding, rng)
    print_cost(token_ids, encoding, rng)


def carried(name: str) -> Path:
    """A file of the package mistral-common."""
    return Path(str(import_module("mistral_common").__file__)).parent / "data" / name


def tekken() -> Any:
    stored = json.loads(carried("tekken_240911.json").read_text("utf-8"))
    config = stored["config"]
    ordinary = config["default_vocab_size"] - config["default_num_special_tokens"]
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in stored["vocab"][:ordinary]}
    return import_module("tiktoken").Encoding(
        "tekken", pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={}
    )


class SentencePiece:
    """What this script uses of a tokenizer, by tiktoken's names."""

    def __init__(self) -> None:
        path = str(carried("mistral_instruct_tokenizer_240323.model.v3"))
        self._processor = import_module("sentencepiece").SentencePieceProcessor(model_file=path)
        self.n_vocab = int(self._processor.vocab_size())

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids, no special tokens among them."""
        return list(self._processor.encode(text))


# The corpus


def corpus(rng: random.Random) -> Texts:
    """Kinds of text that are found here, each with some texts of at most 60,000 characters."""
    share = Path("/usr/share")
    paths = sysconfig.get_paths()
    library = [path for path in Path(paths["stdlib"]).rglob("*.py") if "site-packages" not in path.parts]
    tables = [path for path in library if "encodings" in path.parts]
    tests = [path for path in library if not {"test", "tests", "idle_test"}.isdisjoint(path.parts)]
    code = sorted(set(library) - set(tables) - set(tests))
    documents = [
        path for path in (share / "doc").rglob("*") if re.search(r"\.txt|README|NEWS|FAQ", path.name)
    ]
    kinds = {
        "code, Python": read(code, rng),
        "code, Python tests": read(tests, rng),
        "code, C and C++ headers": read(Path("/usr/include").rglob("*.h"), rng),
        "tables (Python's `encodings`)": read(tables, rng),
        "prose, manual pages, en": read((share / "man").glob("man*/*"), rng, manual_page),
        **{
            f"prose, manual pages, {name}": read((share / "man" / name).rglob("*.*"), rng, manual_page)
            for name in MANUAL_LANGUAGES
        },
        "prose, documents of packages, en": read(documents, rng),
        "prose, READMEs of Python packages, en": read(
            Path(paths["purelib"]).glob("*.dist-info/METADATA"), rng
        ),
        "prose, licences, en": read((share / "common-licenses").glob("*"), rng),
        **{
            f"messages of programs, {name}": messages(share / "locale" / name, rng)
            for name in MESSAGE_LANGUAGES
        },
        "passages of the bundled sample, low entropy": [
            passage.text for passage in passages() if passage.tier == "low_entropy"
        ],
        "passages of the bundled sample, other": [
            passage.text for passage in passages() if passage.tier != "low_entropy"
        ],
    }
    return {kind: found for kind, found in kinds.items() if found}


def plain(path: Path) -> str:
    """The text of a file, packed or not; empty where it is none."""
    try:
        return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    except (OSError, UnicodeDecodeError):
        return ""


def manual_page(path: Path) -> str:
    """The running text of a manual page, without most of its mark-up."""
    lines = plain(path).splitlines()
    kept = (
        re.sub(r"^\.\w+ ", "", line)
        for line in lines
        if line[:1] not in (".", "'") or re.match(r"\.(S[HShs]|[BI]R?) ", line)
    )
    return re.sub(r"\\f[A-Z]|\\f\(..|\\&", "", "\n".join(kept)).replace("\\-", "-")


def read(paths: Iterable[Path], rng: random.Random, reader: Callable[[Path], str] = plain) -> list[str]:
    """Files in a random order, at least 2,000 characters each, until there are enough."""
    found = sorted(path for path in paths if path.is_file())
    rng.shuffle(found)
    texts: list[str] = []
    left = CHARACTERS_PER_KIND
    for path in found:
        text = reader(path)[:CHARACTERS_PER_FILE]
        if len(text) >= 2000 and left > 0:
            texts.append(text)
            left -= len(text)
    return texts


def messages(folder: Path, rng: random.Random) -> list[str]:
    """Translated messages of at least 40 characters, in a random order: catalogues are sorted."""
    found: set[str] = set()
    for path in sorted(folder.rglob("*.mo")):
        try:
            with path.open("rb") as file:
                catalogue: Mapping[object, str] = vars(gettext.GNUTranslations(file))["_catalog"]
        except (OSError, ValueError):
            continue
        found.update(text for original, text in catalogue.items() if original and len(text) >= 40)
    shuffled = sorted(found)
    rng.shuffle(shuffled)
    joined = "\n".join(shuffled)[:CHARACTERS_PER_KIND]
    return [joined[at : at + CHARACTERS_PER_FILE] for at in range(0, len(joined), CHARACTERS_PER_FILE)]


def outputs(
    texts: Sequence[Sequence[int]], length: int, most: int, rng: random.Random
) -> list[Sequence[int]]:
    """Pieces of so many tokens, none overlapping another, at most so many."""
    pieces = [text[at : at + length] for text in texts for at in range(0, len(text) - length + 1, length)]
    rng.shuffle(pieces)
    return pieces[:most]


# Loops


def print_healthy(token_ids: Outputs, most: int, rng: random.Random) -> None:
    print("## Healthy text that is taken for a loop\n")
    print(f"| text | tokens read | {' | '.join(map(str, LENGTHS))} |")
    print(f"|---|---|{'---|' * len(LENGTHS)}")
    of_all = {length: [0, 0] for length in LENGTHS}
    by_ngrams = dict.fromkeys(LENGTHS, 0)
    for group, kinds in grouped(token_ids).items():
        cells = []
        for length in LENGTHS:
            pieces = [piece for kind in kinds for piece in outputs(token_ids[kind], length, most, rng)]
            flagged = sum(map(repeats_itself, pieces))
            cells.append(rate(flagged, len(pieces)))
            if not is_table(group):
                of_all[length][0] += flagged
                of_all[length][1] += len(pieces)
                by_ngrams[length] += sum(map(holds_known_ngrams, pieces))
        read = sum(len(text) for kind in kinds for text in token_ids[kind])
        print(f"| {group} | {read:,} | {' | '.join(cells)} |")
    cells = [rate(*of_all[length]) for length in LENGTHS]
    print(f"| **all but tables and low entropy** | | {' | '.join(cells)} |")
    cells = [rate(by_ngrams[length], of_all[length][1]) for length in LENGTHS]
    print(f"| for comparison: these, judged by 8-grams that came before | | {' | '.join(cells)} |\n")


def grouped(kinds: Iterable[str]) -> Mapping[str, list[str]]:
    """Kinds by what they are called in a table: languages other than English together."""
    groups: dict[str, list[str]] = {}
    for kind in kinds:
        name, _, language = kind.rpartition(", ")
        other = language in (*MANUAL_LANGUAGES, *MESSAGE_LANGUAGES)
        groups.setdefault(f"{name}, other languages" if other else kind, []).append(kind)
    return {
        group.replace("other languages", " ".join(kind.rpartition(", ")[2] for kind in found)): found
        for group, found in groups.items()
    }


def holds_known_ngrams(output: Sequence[int]) -> bool:
    """The obvious measure, for comparison: whether half of the tokens lie in 8-grams that came before."""
    known: set[tuple[int, ...]] = set()
    covered_to = covered = 0
    for at in range(len(output) - 7):
        gram = tuple(output[at : at + 8])
        if gram in known:
            covered += at + 8 - max(at, covered_to)
            covered_to = at + 8
        known.add(gram)
    return covered >= len(output) / 2


def is_table(kind: str) -> bool:
    """Text that loops by design."""
    return kind.startswith("tables") or kind.endswith("low entropy")


def rate(count: int, trials: int) -> str:
    return f"{100 * count / trials:.1f} % of {trials}" if trials else ""


def print_loops(token_ids: Outputs, encoding: Any, rng: random.Random) -> None:
    pool = [
        text for kind, texts in token_ids.items() if not is_table(kind) for text in texts if len(text) > 8192
    ]

    def text(length: int) -> list[int]:
        source = rng.choice(pool)
        at = rng.randrange(len(source) - length)
        return list(source[at : at + length])

    def cycle(length: int, period: int, start: int) -> list[int]:
        return (text(start) + text(period) * (length // period + 1))[:length]

    def changing(length: int, share: float) -> list[int]:
        sentence = text(20)
        loop: list[int] = []
        while len(loop) < length:
            loop += [rng.randrange(encoding.n_vocab) if rng.random() < share else token for token in sentence]
        return loop[:length]

    def counting(length: int, start: int, sentence: str) -> list[int]:
        loop = "".join(
            sentence.format(i=number, square=number * number) for number in range(1, length // 2 + 2)
        )
        return (text(start) + list(encoding.encode_ordinary(loop)))[:length]

    def shuffled(length: int) -> list[int]:
        sentences = [text(rng.randrange(8, 24)) for _ in range(6)]
        return [token for _ in range(length) for token in rng.choice(sentences)][:length]

    print("## Loops that are found\n")
    print(f"| output | {' | '.join(map(str, LENGTHS))} |")
    print(f"|---|{'---|' * len(LENGTHS)}")
    kinds: dict[str, Callable[[int], Iterator[list[int]]]] = {
        "a cycle from the start, period 1 to 16": lambda length: (
            cycle(length, period, 0) for period in (1, 2, 3, 4, 7, 16) for _ in range(50)
        ),
        "a cycle from the start, period an eighth to a third of the output": lambda length: (
            cycle(length, length // part, 0) for part in (8, 5, 4, 3) for _ in range(50)
        ),
        "a cycle that fills the second half, period 1 to 7": lambda length: (
            cycle(length, period, length // 2) for period in (1, 2, 3, 4, 7) for _ in range(50)
        ),
        "a cycle that fills the second half, which holds it 3 to 8 times": lambda length: (
            cycle(length, length // (2 * rounds), length // 2) for rounds in (8, 5, 4, 3) for _ in range(50)
        ),
        "a sentence of 20 tokens again and again, each token another in 5 % of cases": lambda length: (
            changing(length, 0.05) for _ in range(200)
        ),
        "the same, 10 %": lambda length: (changing(length, 0.1) for _ in range(200)),
        f"counting from the start, {len(COUNTERS)} sentences": lambda length: (
            counting(length, 0, sentence) for sentence in COUNTERS
        ),
        "counting in the second half, the same sentences": lambda length: (
            counting(length, length // 2, sentence) for sentence in COUNTERS for _ in range(25)
        ),
        "six sentences again and again, in random order": lambda length: (
            shuffled(length) for _ in range(200)
        ),
    }
    for kind, make in kinds.items():
        cells = []
        for length in LENGTHS:
            judged = [repeats_itself(output) for output in make(length)]
            cells.append(rate(sum(judged), len(judged)))
        print(f"| {kind} | {' | '.join(cells)} |")
    print()


def print_reference() -> None:
    lengths = [length for length in LENGTHS if length <= 512]
    prompts = [prompt for split in ("qualitative", "throughput_1k") for prompt in load(split, None).prompts]
    print("## Outputs of the reference engine that are taken for loops\n")
    print(f"| outputs | {' | '.join(map(str, lengths))} |\n|---|{'---|' * len(lengths)}")
    for name, loop, method, temperature in (
        ("draft_model, temperature 0", False, "draft_model", 0.0),
        ("ngram, temperature 0", False, "ngram", 0.0),
        ("draft_model, temperature 1", False, "draft_model", 1.0),
        ("`--fault loop`", True, "draft_model", 0.0),
    ):
        models = ModelPair(built_in(), loop=loop)
        decoded = []
        for prompt in prompts:
            asked = built_in().chat([("user", prompt.turns[0])])
            decoding = Decoding(
                models,
                asked,
                method=method,
                draft_length=3,
                temperature=temperature,
                randomness=Randomness(digest(asked, 0, 0)),
                may_end=False,
            )
            tokens = [decoding.first()]
            while len(tokens) < max(lengths):
                tokens.extend(decoding.step().tokens)
            decoded.append(tokens)
        cells = [
            rate(sum(repeats_itself(tokens[:length]) for tokens in decoded), len(decoded))
            for length in lengths
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    print()


# Prompts


def print_prompts(token_ids: Outputs, encoding: Any, rng: random.Random) -> None:
    def drawn(ids: Sequence[int], length: int) -> str:
        return str(encoding.decode([rng.choice(ids) for _ in range(length)]))

    everything = range(encoding.n_vocab)
    ascii_only = [token for token in everything if encoding.decode_single_token_bytes(token).isascii()]
    print("## Random-token prompts\n")
    print(
        "| prompts | length | disorder, lowest to highest | single prompts above the threshold | categories of 8 prompts taken for random |"
    )
    print("|---|---|---|---|---|")
    for length in (1000, 8000):
        kinds: dict[str, Sequence[str]] = {
            "the whole vocabulary": [drawn(everything, length) for _ in range(160)],
            "ids below 32,000": [drawn(range(32_000), length) for _ in range(160)],
            "ids below 4,000": [drawn(range(4_000), length) for _ in range(160)],
            "ids of ASCII text": [drawn(ascii_only, length) for _ in range(160)],
            "consecutive ids from a random one on": [
                encoding.decode([(start + number) % encoding.n_vocab for number in range(length)])
                for start in (rng.randrange(encoding.n_vocab) for _ in range(160))
            ],
        }
        for kind in ("code, Python", "prose, manual pages, en", "prose, manual pages, ja", *hard(token_ids)):
            if kind in token_ids:
                ids = sorted({token for text in token_ids[kind] for token in text})
                kinds[f"ids that occur in: {kind}"] = [drawn(ids, length) for _ in range(160)]
        for kind, found in kinds.items():
            print(f"| random, {kind} | {length} tokens | {judged_prompts(found)} |")
    for group, found_kinds in grouped(token_ids).items():
        categories = [
            [encoding.decode(piece) for piece in outputs(token_ids[kind], 1000, 160, rng)]
            for kind in found_kinds
        ]
        if sum(map(len, categories)) >= 8:
            print(f"| {group} | 1000 tokens | {judged_prompts(*categories)} |")
    for split in ("throughput_1k", "throughput_32k"):
        found = [prompt.turns[0] for prompt in load(split, None).prompts]
        print(f"| bundled sample, {split} | | {judged_prompts(found)} |")
    print()


def hard(token_ids: Outputs) -> Iterator[str]:
    """The kinds whose random tokens are the hardest to tell: one script, few and long tokens."""
    return (kind for kind in token_ids if kind.endswith((", ar", ", hi")))


def judged_prompts(*kinds: Sequence[str]) -> str:
    """Three cells of the table; a category is 8 prompts of one kind."""
    values = [disorder(text) for texts in kinds for text in texts]
    single = sum(value >= RANDOM_DISORDER for value in values)
    categories = [texts[at : at + 8] for texts in kinds for at in range(0, len(texts) - 7, 8)]
    return (
        f"{min(values):.2f} to {max(values):.2f} | {rate(single, len(values))} | "
        f"{rate(sum(map(looks_random, categories)), len(categories))}"
    )


# Cost


def print_cost(token_ids: Outputs, encoding: Any, rng: random.Random) -> None:
    pool = [text for texts in token_ids.values() for text in texts if len(text) > 4096]
    print("## Cost, in processor time\n")
    for count, length in ((512, 4096), (16, 32_768)):
        asked = [(list(rng.choice(pool)) * 9)[:length] for _ in range(count)]
        started = time.process_time()
        for output in asked:
            repeats_itself(output)
        print(f"- {count} outputs of {length:,} tokens: {time.process_time() - started:.2f} s")
    prompts = [str(encoding.decode((list(rng.choice(pool)) * 9)[:32_768])) for _ in range(8)] * 64
    started = time.process_time()
    for _ in range(3):
        looks_random(prompts)
    print(f"- 3 categories of 512 prompts of 32,768 tokens: {1e3 * (time.process_time() - started):.0f} ms")


if __name__ == "__main__":
    main()

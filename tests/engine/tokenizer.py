#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tokenizer.py TOKENS [TOKENIZER.JSON...]: our tokenizer against the `tokenizers` package.

TOKENS is the program built from tokens.c. Tokenizers in the manner of many models are trained here, on
the texts of this repository and on generated ones; the shipped one and those on the command line come
on top. Each encodes varied lines of a fixed seed (10,000 in the manner of the models that the engine
knows, a fifth of them else) and decodes what it got, and random tokens too: everything must be equal,
token by token and byte by byte. Needs the package `tokenizers`.
"""
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINES = 10000
MODELS = ["llama2", "mistral-first", "llama3", "qwen2", "neox"]  # neox: MPT's; the others get fewer lines

# --- Text ---

SCRIPTS = [
    (0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x250, 0x2AF), (0x370, 0x3FF), (0x400, 0x4FF),
    (0x530, 0x58F), (0x5D0, 0x5EA), (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF),
    (0xE00, 0xE7F), (0xF00, 0xFFF), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F),
    (0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x3040, 0x30FF), (0x3100, 0x312F), (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFF00, 0xFFEF), (0x10330, 0x1034A),
    (0x1D400, 0x1D7FF), (0x20000, 0x20100),
]
EMOJI = ["🎉", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇯🇵🇫🇷", "❤️", "👩🏿‍🚀", "1️⃣", "☺", "🧑‍🤝‍🧑", "🤷‍♀️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]
MARKS = [0x300, 0x301, 0x302, 0x303, 0x308, 0x30A, 0x316, 0x323, 0x327, 0x328, 0x32E, 0x334, 0x345, 0x5B0, 0x5BC,
         0x64B, 0x651, 0x93C, 0x94D, 0x3099, 0x309A, 0x20D0, 0x1DC4]
SPACES = [" ", "  ", "   ", " " * 7, " " * 40, "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n  ", "\xa0",
          "\u2003", "\u3000", "\u2028", "\u1680", "\u180e", "\u200b", "\u205f", "\x85", "\x0b", "\x0c", "\ufeff"]
WORDS = """the quick brown fox isn't we'll THEY'RE I'd you've he's don't can't 'tis O'Neil rock'n'roll it's
naïve café Straße ŒUVRE ﬁancé İstanbul ſharp Ⅷ ½ ² ① Ａｂｃ ＡＢＣ１２３ ㎏ ĳ ǆ Σίσυφος ΟΔΥΣΣΕΥΣ Москва Ёлка ёж
שלום مَرْحَبًا नमस्ते สวัสดี こんにちは ガギグ ｶﾞｷﾞ 안녕하세요 각 漢字 繁體 ქართული Հայերեն ትግርኛ ▁ ▁▁x Ġ Ċ ĠĠ ģ <0x41> <0xE2>
<0x0A> &nbsp; ... -- — “quoted” ‘single’ «guillemets» _under_score_ snake_case camelCase HTTPServer v1.2.3
3.14159 1,000,000 0x1F 1e-10 2024-01-31 12:34:56 +1-555-0100 100% $5.00 €20 §7 ¶ © ® ™ ° ± × ÷ ≤ ∑ √ ∞ ⇒ → ■ ♪
foo@example.com https://example.com/a?b=c&d=%20#x C:\\Windows\\x.dll /usr/lib/x86_64-linux-gnu""".split()
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
           "<|eot_id|>", "<|begin_of_text|>", "<|", "|>", "<s", "</s", "<mask>", "<extra>", "<EXTRA>", "<ss>", "<s>>"]
BROKEN = ["\ufffd", "\ufffe", "\x00", "\x01", "\x1b[0m", "\x7f", "\x80", "\x9f", "\u0378", "\U000e0001", "\U0010ffff",
          "\ue000", "\u200d", "\ufe0f", "\u202e", "\u0600", "\u00ad"]


def assigned(low, high):
    """What has been a character since Unicode 3.2, so that the versions of the libraries do not matter."""
    return [chr(c) for c in range(low, high + 1) if unicodedata.ucd_3_2_0.category(chr(c)) != "Cn"]


ALPHABETS = [a for a in (assigned(*s) for s in SCRIPTS) if a]
ALL = [c for c in assigned(0x20, 0xFFFF) if not 0xD800 <= ord(c) < 0xE000]


def repository_lines():
    files = [p for pattern in ("*.md", "delta/*.c", "delta/*.h", "delta/*.md", "fs/*.c", "tests/unit/*.c",
                               "mount-tools/man/*", "tests/*.sh") for p in sorted(ROOT.glob(pattern))]
    return [line for p in files for line in p.read_text(encoding="utf-8").split("\n")]


def word(rng):
    alphabet = rng.choice(ALPHABETS)
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 12)))


def code(rng):
    """Something like a line of a program; not from this repository, so that the lines never change."""
    names = ["i", "self", "buffer_size", "HTTPServer", "__init__", "x1", "std::vector<int>", "$foo", "@property"]
    signs = [" = ", "==", " != ", "->", ".", "(", ")", "[0]", "{", "}", ";", " + ", "&&", " // ", "# ", "/*", '"', "'",
             ", ", ": ", "%d\\n", "\\t", "<<", "|=", "...", "0x7f", "1_000", "3.14e-5", " if ", "return ", "for ", "NULL"]
    return rng.choice(["", "\t", "\t\t\t", "    ", " " * 12]) + "".join(
        rng.choice(rng.choice([names, signs])) for _ in range(rng.randint(2, 16)))


def piece(rng):
    kind = rng.randrange(18)
    if kind < 4:
        return rng.choice(WORDS)
    if kind < 6:
        return word(rng)
    if kind == 6:
        return rng.choice(EMOJI) * rng.randint(1, 3)
    if kind == 7:
        return "".join(rng.choice(word(rng)) + "".join(chr(rng.choice(MARKS)) for _ in range(rng.randint(0, 4)))
                       for _ in range(rng.randint(1, 6)))
    if kind == 8:
        return code(rng)
    if kind == 9:
        return rng.choice(SPACES) * rng.randint(1, 4)
    if kind == 10:
        return rng.choice(SPECIAL) + rng.choice(["", " ", "  ", "\n"])
    if kind == 11:
        return rng.choice(BROKEN)
    if kind == 12:
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 25)))
    if kind == 13:
        return "".join(rng.choice(ALL) for _ in range(rng.randint(1, 8)))
    if kind == 14:
        return "".join(rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") for _ in range(rng.randint(1, 6)))
    if kind == 15:
        return unicodedata.normalize(rng.choice(["NFC", "NFD", "NFKC", "NFKD"]), rng.choice(WORDS) + word(rng))
    if kind == 16:
        return rng.choice(WORDS).swapcase() + "'" + rng.choice(["s", "S", "ll", "LL", "Re", "ſ", "d", "x", "ve"])
    return rng.choice(["a", "ab", "=", "-", "ha", "é", "中"]) * rng.randint(1, 60)


def varied_lines():
    rng = random.Random(20240229)
    lines = ["", " ", "  ", "\n", "\r\n\r\n", "a" * 5000, " " * 5000, "x " * 2000, "\u0301" * 300, "1" * 3000,
             "ab" * 3000, "▁" * 100, "<s>" * 100, "\n" * 500 + "x"]
    lines += [c for a in ALPHABETS[:12] for c in a[:60]]
    while len(lines) < LINES:
        separator = rng.choice(["", " ", " ", " ", rng.choice(SPACES)])
        lines.append(separator.join(piece(rng) for _ in range(rng.randint(1, 9))))
    return lines[:LINES]


# --- Tokenizers ---

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
            r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]


def split(regex, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: regex}, "behavior": behavior, "invert": invert}


def byte_level(prefix=False, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def metaspace(scheme, cut):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}


def replace(old, new, kind="String"):
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def sequence(member, *parts):
    return {"type": "Sequence", member: list(parts)}


def added(*tokens):
    """Texts, or (text, flags that are true); numbers follow from the order, as in the package."""
    out = []
    for token in tokens:
        text, flags = token if isinstance(token, tuple) else (token, ("special",))
        out.append({"id": 0, "content": text, **{f: f in flags for f in (
            "single_word", "lstrip", "rstrip", "normalized", "special")}})
    return out


def template(before, after=()):
    def tokens(names):
        return [{"SpecialToken": {"id": n, "type_id": 0}} for n, _ in names]
    single = tokens(before) + [{"Sequence": {"id": "A", "type_id": 0}}] + tokens(after)
    return {"type": "TemplateProcessing", "single": single,
            "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in (*before, *after)}}


def train(pre_tokenizer, texts, size, alphabet=()):
    """Vocabulary and merges, learned by the package."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=list(alphabet), show_progress=False, limit_alphabet=600))
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]


def shifted(vocab, first):
    """A vocabulary with other tokens in front."""
    texts = first + [t for t in sorted(vocab, key=vocab.get) if t not in first]
    return {t: i for i, t in enumerate(texts)}


def document(vocab, merges, **parts):
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model.update(parts.pop("model", {}), vocab=vocab, merges=merges)
    out = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
           "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}
    out.update(parts)
    return out


def sentencepiece_documents(texts):
    vocab, merges = train(pre_tokenizers.Metaspace(), texts, 1500)
    vocab = shifted(vocab, ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)])
    strings = [" ".join(m) for m in merges]
    model = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    basic = added("<unk>", "<s>", "</s>")
    prepend = sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"))
    decoder = sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
                       {"type": "Strip", "content": " ", "start": 1, "stop": 0})
    bos = template([("<s>", 1)])
    chat = basic + added("<pad>", ("[INST]", ("normalized",)), ("[/INST]", ("lstrip", "rstrip")),
                         "<|im_start|>", ("<|im_end|>", ("special", "rstrip")), ("<mask>", ("single_word", "lstrip")),
                         ("  ", ("normalized",)), ("<extra>", ("single_word", "normalized")))
    stripped = [t for t in chat if t["content"].strip()]  # the package panics where a token normalizes to nothing
    small = {t: i for i, t in enumerate(t for t in vocab if not t.startswith("<0x") or t[3] in "0C")}
    lone = {t: i for i, t in enumerate(t for t in vocab if not t.startswith("<0x"))}
    return {
        "llama2": document(vocab, merges, model=model, added_tokens=basic, normalizer=prepend, decoder=decoder,
                           post_processor=bos),
        "mistral-legacy": document(vocab, strings, model=model, added_tokens=chat, normalizer=prepend,
                                   decoder=decoder, post_processor=template([("<s>", 1)], [("</s>", 2)])),
        "mistral-first": document(vocab, merges, model=model, added_tokens=chat, decoder=decoder, post_processor=bos,
                                  pre_tokenizer=metaspace("first", False)),
        "metaspace-always": document(vocab, merges, model=model, added_tokens=chat,
                                     pre_tokenizer=metaspace("always", True), decoder=metaspace("always", True)),
        "metaspace-never": document(vocab, merges, model=model, added_tokens=basic,
                                    pre_tokenizer=metaspace("never", True), decoder=metaspace("never", True)),
        "metaspace-strip": document(vocab, merges, model=model, added_tokens=stripped,
                                    normalizer=sequence("normalizers", {"type": "Strip", "strip_left": True,
                                                                        "strip_right": False}),
                                    pre_tokenizer=metaspace("first", True), decoder=decoder),
        "gemma": document(vocab, merges, model=model, added_tokens=chat, normalizer=replace(" ", "▁"),
                          pre_tokenizer=split(" ", "MergedWithPrevious", kind="String"),
                          decoder=sequence("decoders", replace("▁", " "), {"type": "ByteFallback"},
                                           {"type": "Fuse"})),
        "half-fallback": document(small, merges, model=model, added_tokens=basic, normalizer=prepend),
        "unk-fused": document(lone, merges, model={"unk_token": "<unk>", "fuse_unk": True}, added_tokens=basic,
                              normalizer=prepend),
        "unk-single": document(lone, merges, model={"unk_token": "<unk>"}, added_tokens=basic, normalizer=prepend),
        "no-unk": document(lone, merges, added_tokens=basic, normalizer=prepend, decoder={"type": "Fuse"}),
    }


def byte_level_documents(texts):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab, merges = train(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), texts, 2500, alphabet)
    strings = [" ".join(m) for m in merges]
    decoder = byte_level(True, True)
    chat = added("<|begin_of_text|>", "<|endoftext|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>",
                 *(f"<|reserved_special_token_{i}|>" for i in range(250)))
    neox = added("<|endoftext|>", "<|padding|>", *((" " * n, ("normalized",)) for n in range(24, 1, -1)))
    bos = sequence("processors", byte_level(True, True), template([("<|begin_of_text|>", len(vocab))]))

    def styled(*pre, **parts):
        return document(vocab, parts.pop("merges", merges), decoder=decoder,
                        pre_tokenizer=sequence("pretokenizers", *pre), **parts)

    marks = [("é", ("normalized",)), ("Straße", ("normalized", "single_word")), ("<EXTRA>", ("normalized", "lstrip")),
             ("ab", ("normalized", "rstrip")), "aba"]
    return {
        "llama3": styled(split(LLAMA3), byte_level(), added_tokens=chat, post_processor=bos,
                         model={"ignore_merges": True}),
        "qwen2": styled(split(QWEN), byte_level(), added_tokens=chat, normalizer={"type": "NFC"}, merges=strings),
        "gpt4o": styled(split(GPT4O), byte_level(), added_tokens=chat, model={"ignore_merges": True}),
        "deepseek": styled(*(split(p) for p in DEEPSEEK), byte_level(), added_tokens=chat,
                           normalizer=sequence("normalizers")),
        "gpt2": document(vocab, strings, pre_tokenizer=byte_level(False, True), decoder=decoder,
                         added_tokens=added("<|endoftext|>"), post_processor=byte_level(True, True)),
        "gpt2-prefix": document(vocab, merges, pre_tokenizer=byte_level(True, True), decoder=decoder,
                                added_tokens=added("<|endoftext|>", ("<mask>", ("lstrip", "special")))),
        "neox": document(vocab, merges, normalizer={"type": "NFC"}, pre_tokenizer=byte_level(False, True),
                         decoder=decoder, added_tokens=neox),
        "starcoder": styled({"type": "Digits", "individual_digits": True}, byte_level(False, True), added_tokens=chat),
        "digits": styled({"type": "Digits", "individual_digits": False}, {"type": "Punctuation"}, byte_level(True)),
        "whitespace": styled({"type": "Whitespace"}, {"type": "Punctuation", "behavior": "Contiguous"}, byte_level()),
        "whitespace-split": styled({"type": "WhitespaceSplit"}, byte_level(True, True)),
        "nfkc": styled(split(GPT2), byte_level(), normalizer={"type": "NFKC"}, added_tokens=added(*marks)),
        "nfd-lower": styled(split(r"\w+|[^\w\s]+", "Removed", True), byte_level(), added_tokens=added(*marks),
                            normalizer=sequence("normalizers", {"type": "NFD"}, {"type": "Lowercase"})),
        "nfkd-accents": styled(split(r"\s+", "MergedWithNext"), byte_level(), added_tokens=added(*marks),
                               normalizer=sequence("normalizers", {"type": "NFKD"}, {"type": "StripAccents"},
                                                   {"type": "Strip", "strip_left": True, "strip_right": True},
                                                   replace(r"[\h-]+x?|\bt", "_", "Regex"))),
        "odd-splits": styled(split("a", "MergedWithPrevious", kind="String"), split(r"[.,]|$", "Contiguous"),
                             split(r"\d{2,3}+|^\S", "MergedWithNext", True), split(r"(?i)the|\u0041|.\p{Han}", "Removed"),
                             byte_level()),
        "odd-empty": styled(split(r"x*"), split(r"(?<=\p{Lu})(?=\p{Ll})|\B\W"), split(r"(?>a+)b?+|c{,2}"), byte_level(),
                            normalizer=replace(r"\p{^L}{3}", "", "Regex"), model={"ignore_merges": True}),
    }


# --- Comparison ---

def ours(program, path, mode, records):
    data = b"".join(struct.pack("<I", len(r)) + r for r in records)
    run = subprocess.run([program, path, mode], input=data, capture_output=True, check=False)
    if run.returncode:
        sys.exit(f"tokenizer.py: {path}: {mode}: {run.stderr.decode(errors='replace')}")
    out, at = [], 0
    while at < len(run.stdout):
        size = struct.unpack_from("<I", run.stdout, at)[0]
        out.append(run.stdout[at + 4:at + 4 + size])
        at += 4 + size
    assert len(out) == len(records)
    return out


def report(name, what, inputs, got, expected):
    """How many differ; the first ones are shown."""
    wrong = [i for i in range(len(inputs)) if got[i] != expected[i]]
    for i in wrong[:3]:
        print(f"{name}: {what}: {inputs[i]!r:.300}\n  ours:    {got[i]!r:.300}\n  package: {expected[i]!r:.300}")
    return len(wrong)


def compare(program, name, path, lines):
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    raw = [line.encode() for line in lines]
    wrong = 0
    for mode, special in (("encode", False), ("special", True)):
        expected = [e.ids for e in tokenizer.encode_batch(lines, add_special_tokens=special)]
        got = [list(struct.unpack(f"<{len(r) // 4}i", r)) for r in ours(program, path, mode, raw)]
        wrong += report(name, mode, lines, got, expected)
    rng = random.Random(7)
    size = tokenizer.get_vocab_size() + 3
    ids = expected + [[rng.randrange(size) for _ in range(rng.randint(0, 20))] for _ in range(2000)]
    records = [struct.pack(f"<{len(i)}i", *i) for i in ids]
    for mode, skip in (("decode", True), ("text", False)):
        got = [r.decode() for r in ours(program, path, mode, records)]
        wrong += report(name, mode, ids, got, tokenizer.decode_batch(ids, skip_special_tokens=skip))
    tokens = sum(map(len, expected))
    print(f"{'not ok' if wrong else 'ok'} {name}: {len(lines)} lines, {tokens} tokens, {len(ids)} decoded: "
          f"{f'{wrong} differ' if wrong else 'equal'}", flush=True)
    return wrong


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    program = sys.argv[1]
    lines = varied_lines()
    texts = repository_lines() + lines[::5]
    wrong = 0
    with tempfile.TemporaryDirectory() as directory:
        for name, doc in {**sentencepiece_documents(texts), **byte_level_documents(texts)}.items():
            path = pathlib.Path(directory, name + ".json")
            path.write_text(json.dumps(doc, ensure_ascii=False), encoding="utf-8")
            wrong += compare(program, name, path, lines if name in MODELS else lines[::5])
    for path in [ROOT / "tests/data/nano-llama2/base/tokenizer.json", *map(pathlib.Path, sys.argv[2:])]:
        wrong += compare(program, "/".join(path.parts[-3:]), path, lines)
    sys.exit(1 if wrong else 0)


main()

# SPDX-License-Identifier: Apache-2.0
"""test_models.py MOUNT TRUTH MODELS: transformers loads each of make_models.py's fine-tunes.

MOUNT/NAME is mounted, TRUTH/NAME exported, MODELS/NAME/{NAME-base,NAME} what was imported. Weights and answers
must be exactly those of the export, and nearer to the fine-tune's than the base's are.
"""
import json, os, sys

import torch
import transformers as tf
from accelerate import init_empty_weights, load_checkpoint_and_dispatch

from steps import finish, forget, shards, step

mount, truth, models = sys.argv[1:4]
tf.logging.set_verbosity_error()
tf.logging.disable_progress_bar()
text = "In the beginning God created the heaven and the earth."
CLASSES = {"t5": tf.AutoModelForSeq2SeqLM, "bert": tf.AutoModelForSequenceClassification}


def load(path, name, dtype="auto", **more):
    auto = CLASSES.get(name, tf.AutoModelForCausalLM)
    return auto.from_pretrained(path, torch_dtype=dtype, **more)  # in eval mode


def answer(path, name):
    """The logits for the text, in F32; of decoders, after a greedy continuation."""
    model = load(path, name, torch.float32)
    tokens = tf.AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        if name == "t5":
            return model(input_ids=tokens, decoder_input_ids=tokens[:, :5]).logits
        logits = model(tokens).logits
        for _ in range(0 if name == "bert" else 5):
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
            logits = model(tokens).logits
        return logits


for name in sorted(os.listdir(models)):
    mounted, exported = os.path.join(mount, name), os.path.join(truth, name)
    base, fine = (os.path.join(models, name, x) for x in (name + "-base", name))

    with step(f"{name}: weights equal the export's"):
        for path in shards(mounted):
            forget(path)
        a, info = load(mounted, name, output_loading_info=True)
        assert not any(info.values()), info
        b = load(exported, name)
        assert a.dtype == b.dtype == load(fine, name).dtype
        a, b = a.state_dict(), b.state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

    with step(f"{name}: answers equal the export's"):
        assert torch.equal(answer(mounted, name), answer(exported, name))
        if name != "bert":  # whose base has another head
            f, m, o = (load(x, name, torch.float32).state_dict() for x in (fine, mounted, base))
            far, near = (sum((x[k] - f[k])[:1024].norm() ** 2 if k in x and x[k].shape == f[k].shape else 0
                             for k in f) for x in (o, m))
            assert near < 0.7 * far, (near, far)

    with step(f"{name}: AutoTokenizer and AutoConfig are the fine-tune's"):
        a, b = (tf.AutoTokenizer.from_pretrained(x) for x in (mounted, fine))
        assert a.get_vocab() == b.get_vocab() and a(text) == b(text)
        assert name != "grown" or (len(a) == 1027 and len(a.tokenize("<think>x<|im_start|>")) == 3)
        a, b = (tf.AutoConfig.from_pretrained(x).to_dict() | {"_name_or_path": ""} for x in (mounted, fine))
        assert a == b

    with step(f"{name}: the index names files that are there, and all of them"):
        path = os.path.join(mounted, "model.safetensors.index.json")
        files = ["model.safetensors"]
        if os.path.exists(path):
            with open(path) as f:
                files = sorted(set(json.load(f)["weight_map"].values()))
        assert files == [os.path.basename(x) for x in shards(mounted)]

with step("tied embeddings are one tensor"):
    m = load(os.path.join(mount, "llama"), "llama")
    assert m.lm_head.weight.data_ptr() == m.model.embed_tokens.weight.data_ptr()

with step("accelerate loads over empty weights"):
    config = tf.AutoConfig.from_pretrained(os.path.join(mount, "qwen2"))
    with init_empty_weights():
        m = tf.AutoModelForCausalLM.from_config(config)
    m = load_checkpoint_and_dispatch(m, os.path.join(mount, "qwen2"), device_map={"": "cpu"},
                                     dtype=torch.bfloat16)
    a, b = m.state_dict(), load(os.path.join(truth, "qwen2"), "qwen2").state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

with step("a pipeline"):
    a, b = (tf.pipeline("text-classification", os.path.join(x, "bert"), device=-1)(text)
            for x in (mount, truth))
    assert a == b and a[0]["label"].startswith("LABEL_")

with step("save_pretrained of a mounted model writes it whole"):
    out = os.path.join(os.path.dirname(truth), "saved")
    load(os.path.join(mount, "qwen2"), "qwen2").save_pretrained(out)
    a, b = (load(x, "qwen2").state_dict() for x in (out, os.path.join(truth, "qwen2")))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

finish()

# SPDX-License-Identifier: Apache-2.0
"""make_models.py OUT TOKENIZER: small models of many architectures, each as a base and a fine-tune.

OUT/NAME/{NAME-base,NAME}/, saved by transformers itself; TOKENIZER is a tokenizer.json of 1024 tokens. Random
weights: loaders do not mind, and nothing is downloaded.

    qwen2     biases; the fine-tune in shards with an index
    llama     F16, tied embeddings; the base in shards
    neox      F32, fused projections with biases, layer norms
    moe       experts as tensors of rank 3
    mixtral   experts as a tensor each
    grown     three tokens added; the configuration says dtype, as transformers 5 does, not torch_dtype
    t5        encoder and decoder, shared embeddings; the base in F32, the fine-tune in BF16
    bert      another head than the base's
"""
import json, os, sys

import torch
import transformers as tf

out, vocabulary = sys.argv[1:3]
tf.logging.set_verbosity_error()
torch.manual_seed(7)
COMMON = dict(vocab_size=1024, hidden_size=64, intermediate_size=160, num_hidden_layers=2,
              num_attention_heads=4, max_position_embeddings=256)
LLAMA = dict(COMMON, num_key_value_heads=2)


def models():
    """name, model, dtypes of base and fine-tune, size of shards of either, class of the fine-tune"""
    bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
    yield ("qwen2", tf.Qwen2ForCausalLM(tf.Qwen2Config(**LLAMA, tie_word_embeddings=False)),
           (bf16, bf16), ("9MB", "150KB"), None)
    yield ("llama", tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
           (f16, f16), ("150KB", "9MB"), None)
    yield "neox", tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**COMMON)), (f32, f32), ("9MB", "9MB"), None
    yield ("moe", tf.GraniteMoeForCausalLM(tf.GraniteMoeConfig(**LLAMA, num_local_experts=4)),
           (bf16, bf16), ("9MB", "9MB"), None)
    yield ("mixtral", tf.MixtralForCausalLM(tf.MixtralConfig(**LLAMA, num_local_experts=4)),
           (f16, f16), ("200KB", "300KB"), None)
    yield "grown", tf.MistralForCausalLM(tf.MistralConfig(**LLAMA)), (bf16, bf16), ("9MB", "9MB"), None
    yield ("t5", tf.T5ForConditionalGeneration(tf.T5Config(
        vocab_size=1024, d_model=64, d_kv=16, d_ff=160, num_layers=2, num_heads=4,
        decoder_start_token_id=0)), (f32, bf16), ("9MB", "9MB"), None)
    yield ("bert", tf.BertForMaskedLM(tf.BertConfig(**COMMON)), (f32, f32), ("9MB", "9MB"),
           tf.BertForSequenceClassification)


def tokenizer():
    return tf.PreTrainedTokenizerFast(tokenizer_file=vocabulary, bos_token="<s>", eos_token="</s>",
                                      unk_token="<unk>")


def tune(model):
    """Change what is not an embedding or a norm, as fine-tuning does most."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p += 0.1 * torch.randn_like(p)
            elif p.shape[0] < 1000:
                p += 0.1 * p.std() * torch.randn_like(p)


for name, model, (base_dtype, dtype), (base_shards, shards), other in models():
    base, fine = (os.path.join(out, name, x) for x in (name + "-base", name))
    for p in model.parameters():  # biases and norms that are not all 0 or 1
        if p.ndim == 1:
            torch.nn.init.normal_(p.data, float(p.data.float().mean()), 0.05)
    model.to(base_dtype).save_pretrained(base, max_shard_size=base_shards)
    tokenizer().save_pretrained(base)
    tokens = tokenizer()
    if other:
        model = other.from_pretrained(base, num_labels=3)
    if name == "grown":
        tokens.add_tokens(["<think>", "</think>"])
        tokens.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
        model.resize_token_embeddings(len(tokens))
    tune(model)
    model.to(dtype).save_pretrained(fine, max_shard_size=shards)
    tokens.save_pretrained(fine)
    if name == "grown":
        path = os.path.join(fine, "config.json")
        with open(path) as f:
            config = json.load(f)
        config["dtype"] = config.pop("torch_dtype", None) or config["dtype"]
        with open(path, "w") as f:
            json.dump(config, f, indent=2)
    print(name)

# SPDX-License-Identifier: Apache-2.0
"""test_hub.py MOUNT TRUTH: a mount with layout=hub is the cache of huggingface_hub and transformers.

HF_HUB_CACHE=MOUNT and HF_HUB_OFFLINE=1 are set; the deltas of make_models.py's fine-tunes are called
acme--NAME.bdelta, and bases are shown too. TRUTH/NAME is what was exported.
"""
import http.server, json, os, subprocess, sys, tempfile, textwrap, threading

import huggingface_hub as hub
import torch
import transformers as tf
from huggingface_hub.errors import LocalEntryNotFoundError

from steps import finish, same_files, shards, step

mount, truth = sys.argv[1:3]
names = sorted(os.listdir(truth))
tf.logging.set_verbosity_error()
tf.logging.disable_progress_bar()
print(f"# huggingface_hub {hub.__version__}")
assert os.environ["HF_HUB_CACHE"] == mount == hub.constants.HF_HUB_CACHE


def revision(name):
    with open(os.path.join(mount, f"models--acme--{name}", "refs", "main")) as f:
        return f.read()


def snapshot(name):
    return os.path.join(mount, f"models--acme--{name}", "snapshots", revision(name))


def refused(expected, function, *args, **more):
    try:
        function(*args, **more)
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was expected")


with step("snapshot_download gives the directory"):
    for name in names:
        path = hub.snapshot_download(f"acme/{name}")
        assert path == snapshot(name)
        same_files(path, os.path.join(truth, name))

with step("snapshot_download of a revision, and of some files"):
    assert hub.snapshot_download("acme/llama", revision=revision("llama")) == snapshot("llama")
    assert hub.snapshot_download("acme/llama", local_files_only=True, allow_patterns="*.json") == snapshot("llama")
    refused(LocalEntryNotFoundError, hub.snapshot_download, "acme/llama", revision="0" * 40)
    refused(LocalEntryNotFoundError, hub.snapshot_download, "acme/absent")

with step("hf_hub_download of each file"):
    for name in names:
        for file in os.listdir(os.path.join(truth, name)):
            path = hub.hf_hub_download(f"acme/{name}", file)
            with open(path, "rb") as a, open(os.path.join(truth, name, file), "rb") as b:
                assert a.read() == b.read(), path
    refused(LocalEntryNotFoundError, hub.hf_hub_download, "acme/llama", "adapter_config.json")

with step("try_to_load_from_cache"):
    assert hub.try_to_load_from_cache("acme/qwen2", "config.json") == snapshot("qwen2") + "/config.json"
    assert hub.try_to_load_from_cache("acme/qwen2", "config.json", revision=revision("qwen2"))
    assert hub.try_to_load_from_cache("acme/qwen2", "adapter_config.json") is None
    assert hub.try_to_load_from_cache("acme/qwen2", "config.json", revision="other") is None
    assert hub.try_to_load_from_cache("acme/absent", "config.json") is None

with step("scan_cache_dir finds nothing to complain of"):
    cache = hub.scan_cache_dir()
    assert not cache.warnings, cache.warnings
    repos = {r.repo_id: r for r in cache.repos}
    assert {f"acme/{n}" for n in names} <= repos.keys(), repos.keys()
    assert len(repos) > len(names)  # and the bases
    for name in names:
        r = repos[f"acme/{name}"]
        size = sum(e.stat().st_size for e in os.scandir(os.path.join(truth, name)))
        assert r.repo_type == "model" and r.size_on_disk == size and r.refs.keys() == {"main"}
        assert [x.commit_hash for x in r.revisions] == [revision(name)]

with step("from_pretrained by name"):
    for name in "qwen2", "llama", "neox", "moe", "mixtral", "grown":
        a = tf.AutoModelForCausalLM.from_pretrained(f"acme/{name}", torch_dtype="auto")
        b = tf.AutoModelForCausalLM.from_pretrained(os.path.join(truth, name), torch_dtype="auto")
        a, b = a.state_dict(), b.state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    refused(OSError, tf.AutoModelForCausalLM.from_pretrained, "acme/absent")

with step("AutoTokenizer, AutoConfig and a pipeline by name"):
    tokens = tf.AutoTokenizer.from_pretrained("acme/grown")
    assert len(tokens) == 1027
    assert tf.AutoConfig.from_pretrained("acme/qwen2", revision="main").model_type == "qwen2"
    made = tf.pipeline("text-classification", "acme/bert", device=-1)("God said")
    assert made[0]["label"].startswith("LABEL_")

with step("a base by name"):
    base = next(e for e in os.listdir(mount) if not e.startswith("models--acme--"))
    assert hub.snapshot_download(base.removeprefix("models--").replace("--", "/"))

# Programs that find a cache of another layout convert it, and say so.
for module in "huggingface_hub", "transformers":
    with step(f"import {module} says nothing"):
        code = f"import {module}.utils; print(1)"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert said.stdout == "1\n" and not said.stderr, said

with step("hf cache"):
    hf = os.path.join(os.path.dirname(sys.executable), "hf")
    word = "ls" if int(hub.__version__.split(".")[0]) > 0 else "scan"
    said = subprocess.run([hf, "cache", word], capture_output=True, text=True, check=True).stdout
    assert all(f"acme/{n}" in said for n in names) and "warning" not in said.lower(), said

with step("not told to be offline, but without a network"):
    code = "import huggingface_hub as h; print(h.snapshot_download('acme/llama'), h.hf_hub_download('acme/bert', 'config.json'))"
    env = {k: v for k, v in os.environ.items() if "OFFLINE" not in k} | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=600)
    assert said.stdout.split() == [snapshot("llama"), snapshot("bert") + "/config.json"], said



class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that has the model other/small, with one file, and no other."""

    commit = "c" * 40

    def answer(self):
        files = [f"/other/small/resolve/{revision}/config.json" for revision in ("main", self.commit)]
        body, headers = b"", {"X-Error-Code": "RepoNotFound"}
        if self.path == "/api/models/other/small/revision/main":
            siblings = [{"rfilename": "config.json"}]
            body = json.dumps({"id": "other/small", "sha": self.commit, "siblings": siblings}).encode()
        elif self.path in files:
            body, headers = b"{}", {"ETag": '"0123"', "X-Repo-Commit": self.commit}
        self.send_response(200 if body else 404)
        for name, value in (headers | {"Content-Length": len(body)}).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD = answer

    def log_message(self, *_):
        pass


with step("a link in an ordinary cache, to which other models are downloaded"):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as cache:
        os.symlink(os.path.join(mount, "models--acme--llama"), os.path.join(cache, "models--acme--llama"))
        code = textwrap.dedent("""
            import huggingface_hub as h, transformers as t
            for _ in range(2):
                print(h.snapshot_download('acme/llama'), h.hf_hub_download('acme/llama', 'config.json'))
                print(open(h.snapshot_download('other/small') + '/config.json').read())
            t.AutoModelForCausalLM.from_pretrained('acme/llama')
            print(*sorted(r.repo_id for r in h.scan_cache_dir().repos))""")
        env = {k: v for k, v in os.environ.items() if "OFFLINE" not in k}
        env |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_CACHE": cache}
        said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100)
        linked = snapshot("llama").replace(mount, cache)
        assert said.stdout.split() == [linked, linked + "/config.json", "{}"] * 2 + ["acme/llama", "other/small"], said
        same_files(linked, os.path.join(truth, "llama"))

finish()

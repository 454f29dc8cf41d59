# SPDX-License-Identifier: Apache-2.0
"""Starting: options from flags, environment and file, and models that must be refused.

Whatever is wrong ends the daemon with one clear line and without a port. Most tests give a model
that does not exist: its name in the error shows which source of an option won.
"""

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import zipfile

import pytest

from conftest import BINARY, MODEL, ROOT

TINY = ROOT / "tests" / "golden" / "tiny"
CLEAN_ENV = {k: v for k, v in os.environ.items() if not k.startswith("OPENMOED_")}
OPTIONS = ("model served-model-name host port device dtype max-model-len threads expert-capacity "
           "load-format api-key api-key-file max-body-size max-expert-tokens routing-table "
           "prefix-caching kv-cache-memory drain-timeout log-level log-format config help "
           "version").split()


def run(*flags, **env):
    return subprocess.run([BINARY, *map(str, flags)], env={**CLEAN_ENV, **env}, timeout=60,
                          capture_output=True, text=True)


def refused(*flags, code=1, **env):
    """The one line that a start which fails leaves on stderr, without time and level."""
    done = run("--port", "0", *flags, **env)
    assert done.returncode == code, done
    assert done.stdout == ""
    # what the daemon says of the device it took is no error
    (line,) = [text for text in done.stderr.splitlines() if not re.match(r"\S+Z INFO ", text)]
    assert "listening" not in line
    return re.sub(r"^(\S+Z ERROR|openmoed:) ", "", line)


# ---- options


def test_help_lists_every_option():
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    names = re.findall(r"^  --(\S+)", done.stdout, re.M)
    assert set(OPTIONS) <= set(names) and len(names) == len(set(names))
    for name in set(names) - {"help", "version"}:
        assert f"OPENMOED_{name.upper().replace('-', '_')}]" in done.stdout
    assert done.stdout.count("[default: ") == len(names) - 2
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_version():
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"openmoed \d+\.\d+\.\d+\n", done.stdout)


def defaults():
    """name -> default, of every option that has one, as --help tells."""
    text = run("--help").stdout
    found = re.findall(r"^  --(\S+) .*?\[default: (.*?); OPENMOED", text, re.M | re.S)
    return {name: " ".join(value.split()) for name, value in found if " " not in value}


def test_every_default_is_accepted_from_every_source(tmp_path):
    values = {**defaults(), "model": "/no/such/model"}
    del values["config"]
    assert len(values) > 15
    flags = [f"--{name}={value}" for name, value in values.items()]
    env = {f"OPENMOED_{k.upper().replace('-', '_')}": v for k, v in values.items()}
    dashes, lines = tmp_path / "dashes.json", tmp_path / "lines.json"
    dashes.write_text(json.dumps(values))
    lines.write_text(json.dumps({k.replace("-", "_"): int(v) if v.isdigit() else v
                                 for k, v in values.items()}))
    for asked in ((flags, {}), ([], env), (["--config", dashes], {}), (["--config", lines], {})):
        assert "/no/such/model" in refused(*asked[0], **asked[1])


@pytest.mark.parametrize("flags, named", [
    (["--bogus", "1"], "--bogus"), (["--bogus=1"], "--bogus"), (["-p", "1"], "-p"),
    (["--max_model_len", "5"], "--max_model_len"), (["stray"], "stray"),
    (["--threads"], "--threads"), (["--threads="], "--threads"), (["--threads", "two"], "two"),
    (["--threads", "-1"], "-1"), (["--port", "65536"], "65536"), (["--port", "80 "], "80 "),
    (["--device", "gpu"], "auto, cpu, cuda"), (["--dtype", "f16"], "auto, f32, bf16"),
    (["--expert-capacity", "some"], "dropless, reference"), (["--log-level", "all"], "--log-level"),
    (["--max-body-size", "4X"], "4X"), (["--max-body-size", "99999999999999999999"], "--max-body"),
    (["--api-key", "two words"], "--api-key"), (["--help=yes"], "--help"),
    (["--config", "/no/such/file"], "/no/such/file"),
])
def test_bad_flags(flags, named):
    assert named in refused(*flags, code=2)


def test_a_bad_api_key_is_not_repeated():
    assert "hush hush" not in refused("--api-key", "hush hush", code=2)


@pytest.mark.parametrize("name, value, named", [
    ("OPENMOED_BOGUS", "1", "OPENMOED_BOGUS"), ("OPENMOED_THREADS", "two", "two"),
    ("OPENMOED_PORT", "tcp://10.0.0.1:80", "enableServiceLinks"), ("OPENMOED_HOST", "", "empty"),
    ("OPENMOED_CONFIG", "/no/such/file", "/no/such/file"),
])
def test_bad_environment(name, value, named):
    line = refused(code=2, **{name: value})
    assert named in line and (name in line or name == "OPENMOED_CONFIG")


@pytest.mark.parametrize("text, named", [
    ('{"bogus": 1}', "bogus"), ('{"threads": "two"}', "threads"), ('{"threads": 1.5}', "threads"),
    ('{"threads": true}', "threads"), ('{"threads": null}', "threads"), ("[]", "array"),
    ('{"dtype": "f16"}', "dtype"), ('{"config": "x"}', "config"), ("{", "config.json"), ("", ""),
    ('{"threads": 1, "threads": 2}', "threads"),
    ('{"max-model-len": 1, "max_model_len": 2}', "max"),
    ('{"model": ["x"]}', "model"), ('{"threads": 1} x', ""),
])
def test_bad_config_file(tmp_path, text, named):
    path = tmp_path / "config.json"
    path.write_text(text)
    line = refused("--config", path, code=2)
    assert line.startswith(str(path)) and named in line


def test_flags_over_environment_over_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model": "/no/file", "threads": 1}')
    by_file = {"OPENMOED_CONFIG": str(path)}
    assert "/no/file" in refused("--config", path)
    assert "/no/file" in refused(**by_file)
    assert "/no/env" in refused(OPENMOED_MODEL="/no/env", **by_file)
    assert "/no/flag" in refused("--model", "/no/flag", OPENMOED_MODEL="/no/env", **by_file)
    assert "/no/last" in refused("--model", "/no/flag", "--model", "/no/last")
    other = tmp_path / "other.json"
    other.write_text('{"model": "/no/other"}')
    assert "/no/other" in refused("--config", other, **by_file)


def test_options_of_a_file_reach_the_daemon(start, tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"max_model_len": 99, "api-key": "from-file", "log-format": "json"}')
    daemon = start("--config", str(path), "--max-model-len", "77", model=str(TINY))
    assert daemon.get("/v1/models")[0] == 401
    headers = {"Authorization": "Bearer from-file"}
    models = json.loads(daemon.request("GET", "/v1/models", headers=headers)[2])
    assert models["data"][0]["max_model_len"] == 77
    assert all(isinstance(json.loads(line), dict) for line in daemon.log.splitlines())


def test_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("--model", TINY, "--port", port)
    assert str(port) in line and "in use" in line


@pytest.mark.parametrize("flags, named", [
    (["--host", "192.0.2.1"], "192.0.2.1"), (["--host", "no.such.host.invalid"], "no.such.host"),
    (["--max-model-len", "257"], "--max-model-len"), (["--kv-cache-memory", "1K"], "--kv-cache"),
    (["--max-num-seqs", "513"], "--max-num-seqs"),
])
def test_options_that_do_not_fit_the_model_or_the_machine(flags, named):
    assert named in refused("--model", TINY, *flags)


def test_unknown_preset():
    assert "tiny" in refused("--load-format", "dummy", "--model", "tiny")


# ---- models


@pytest.fixture
def folder(tmp_path):
    """folder(form): a copy of the tiny model in one of its forms."""
    def copy(form="."):
        target = tmp_path / "model"
        shutil.copytree(TINY / form, target, ignore=shutil.ignore_patterns("bf16", "torch"))
        return target

    return copy


def edit_header(path, change):
    """Rewrites the header of a safetensors file; change(header) edits it in place."""
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + n :])


TENSOR = "model.layers.1.mlp.experts.wo"


def rename(header):
    header["model.layers.9.extra"] = header.pop(TENSOR)


@pytest.mark.parametrize("what, change, named", [
    ("missing", rename, TENSOR),
    ("shape", lambda h: h[TENSOR].update(shape=[8, 64, 96]), TENSOR),
    ("rank", lambda h: h[TENSOR].update(shape=[49152]), TENSOR),
    ("dtype", lambda h: h[TENSOR].update(dtype="I32"), TENSOR),
    ("unknown dtype", lambda h: h[TENSOR].update(dtype="Q4"), TENSOR),
    ("half", lambda h: h[TENSOR].update(dtype="F16"), TENSOR),
    ("huge shape", lambda h: h[TENSOR].update(shape=[2**31, 2**31, 2**31]), TENSOR),
    ("negative shape", lambda h: h[TENSOR].update(shape=[8, -96, 64]), TENSOR),
    ("beyond the end", lambda h: h["lm_head.weight"].update(data_offsets=[2497280, 2628356]),
     "lm_head.weight"),
    ("backwards", lambda h: h[TENSOR].update(data_offsets=[1215488, 1018880]), TENSOR),
    ("overlap", lambda h: h[TENSOR].update(data_offsets=[1018876, 1215484]), TENSOR),
    ("no offsets", lambda h: h[TENSOR].pop("data_offsets"), TENSOR),
    ("not an object", lambda h: h.update({TENSOR: 5}), TENSOR),
])
def test_bad_tensor(folder, what, change, named):
    model = folder()
    edit_header(model / "model.safetensors", change)
    line = refused("--model", model)
    assert named in line and (what == "missing" or "model.safetensors" in line), line


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5000, 2633423])
def test_truncated_safetensors(folder, size):
    model = folder()
    os.truncate(model / "model.safetensors", size)
    assert "model.safetensors" in refused("--model", model)


@pytest.mark.parametrize("start", [b"\xff" * 8, struct.pack("<Q", 10**12), struct.pack("<Q", 0),
                                   struct.pack("<Q", 2633424)])
def test_header_length_is_not_believed(folder, start):
    model = folder()
    with open(model / "model.safetensors", "r+b") as f:
        f.write(start)
    assert "model.safetensors" in refused("--model", model)


@pytest.mark.parametrize("form, name", [
    ("bf16", "model-00002-of-00002.safetensors"), ("torch", "pytorch_model-00002-of-00002.bin")])
def test_missing_and_broken_shards(folder, form, name):
    model = folder(form)
    shard = model / name
    data = shard.read_bytes()
    shard.unlink()
    assert name in refused("--model", model)
    for size in (0, 1, 1000, len(data) // 2, len(data) - 1):
        shard.write_bytes(data[:size])
        assert name in refused("--model", model)
    (index,) = model.glob("*.index.json")
    shard.write_bytes(data)
    text = index.read_text()
    index.write_text(text.replace(name, "elsewhere"))
    assert "elsewhere" in refused("--model", model)
    index.write_text(text.replace(name, "../" + name))
    line = refused("--model", model)
    assert index.name in line and "beside it" in line
    index.write_text(text.replace("lm_head.weight", "other.weight"))
    line = refused("--model", model)
    assert "lm_head.weight" in line or "other.weight" in line
    index.write_text(text[:-1])
    assert index.name in refused("--model", model)
    index.unlink()
    assert str(model) in refused("--model", model)


def test_a_pickle_that_calls_is_refused_by_name(folder):
    model = folder("torch")
    shard = model / "pytorch_model-00001-of-00002.bin"
    mark = model / "executed"
    evil = b"\x80\x02cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    copy = shard.with_suffix(".new")
    with zipfile.ZipFile(shard) as old, zipfile.ZipFile(copy, "w") as new:
        for item in old.infolist():
            data = evil if item.filename.endswith("data.pkl") else old.read(item)
            new.writestr(item.filename, data)
    copy.replace(shard)
    line = refused("--model", model)
    assert shard.name in line and "os" in line and "system" in line
    assert not mark.exists()


@pytest.mark.parametrize("change, named", [
    (lambda c: c.pop("num_experts"), "num_experts"),
    (lambda c: c.pop("moe_layer_interval"), "moe_layer_interval"),
    (lambda c: c.pop("hidden_size"), "hidden_size"),
    (lambda c: c.update(hidden_size=0), "hidden_size"),
    (lambda c: c.update(hidden_size="64"), "hidden_size"),
    (lambda c: c.update(hidden_size=64.5), "hidden_size"),
    (lambda c: c.update(num_hidden_layers=-1), "num_hidden_layers"),
    (lambda c: c.update(num_hidden_layers=10**9), "num_hidden_layers"),
    (lambda c: c.update(vocab_size=513), "embed_tokens"),
    (lambda c: c.update(num_hidden_layers=5), "model.layers.4"),
    (lambda c: c.update(num_hidden_layers=3), "model.layers.3"),
    (lambda c: c.update(router_topk=9), "topk"),
    (lambda c: c.update(head_dim=15), "head_dim"),
    (lambda c: c.update(num_key_value_heads=4), "key_value"),
    (lambda c: c.update(rms_norm_eps=-1), "eps"),
    (lambda c: c.update(moe_layer_interval=3), "model.layers."),
])
def test_bad_config_of_a_model(folder, change, named):
    model = folder()
    path = model / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    assert named in refused("--model", model)


def test_weights_cut_while_they_are_served(folder, start):
    model = folder()
    daemon = start(model=str(model))
    os.truncate(model / "model.safetensors", 100)
    ids = {"model": daemon.model, "prompt": list(range(2, 500, 20)), "max_tokens": 1}
    with pytest.raises(OSError):
        daemon.request("POST", "/v1/completions", ids)
    assert daemon.wait() == 1
    assert "a file of the model was cut" in daemon.log


def test_no_model(folder, tmp_path):
    assert "/no/such" in refused("--model", "/no/such")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused("--model", tmp_path / "empty")
    assert "config.json" in refused("--model", folder() / "config.json")
    model = tmp_path / "model"
    (model / "model.safetensors").unlink()
    assert str(model) in refused("--model", model)
    (model / "config.json").write_text("{")
    assert "config.json" in refused("--model", model)


def test_broken_tokenizer(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    piece = model / "spiece.model"
    data = piece.read_bytes()
    for broken in (b"", b"no model", data[: len(data) // 2], b"\xff" * 1000):
        piece.write_bytes(broken)
        assert "spiece.model" in refused("--model", model)
    piece.write_bytes(data)
    config = model / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 2048', '"vocab_size": 1900'))
    line = refused("--model", model)
    assert "spiece.model" in line or "embed_tokens" in line


def test_log_lines_cannot_be_forged():
    line = refused("--model", "/no/such\n2026-01-01T00:00:00Z INFO forged")
    assert "forged" in line and "\\n" in line


def test_sighup_without_a_key_file_changes_nothing(start):
    daemon = start()
    daemon.signal(signal.SIGHUP)
    daemon._until("log line", lambda: "no --api-key-file to read again" in daemon.log)
    assert daemon.get("/health")[0] == 200

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzz targets that read files into tests/fuzz/corpus/.

Plain Python; torch.save's form is made by hand, since seeds should be small: a few hundred bytes.
"""
import io
import json
import pathlib
import struct
import zipfile

CORPUS = pathlib.Path(__file__).parent / "corpus"


def write(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def safetensors(header, data):
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def text(s):
    return b"X" + struct.pack("<I", len(s)) + s


def tensor(name, storage, key, numel, offset, dims, strides):
    def row(values):
        return b"(" + b"".join(b"K" + bytes([v]) for v in values) + b"t"

    persistent = b"(" + text(b"storage") + b"ctorch\n" + storage + b"\n"
    persistent += text(key) + text(b"cpu") + b"M" + struct.pack("<H", numel) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + b"K" + bytes([offset])
    return text(name) + call + row(dims) + row(strides) + b"\x89ccollections\nOrderedDict\n)RtR"


def archive(pickle, storages):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as z:
        entries = {"m/data.pkl": pickle, "m/byteorder": b"little", **storages, "m/version": b"3\n"}
        for name, data in entries.items():
            z.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def main():
    one = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    three = dict(one, __metadata__={"format": "pt"})
    three["b"] = {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}
    three["c"] = {"dtype": "F16", "shape": [], "data_offsets": [22, 24]}
    write("safetensors", "empty", safetensors({}, b""))
    write("safetensors", "one", safetensors(one, bytes(16)))
    write("safetensors", "three", safetensors(three, bytes(24)))

    a = tensor(b"a", b"FloatStorage", b"0", 4, 0, [2, 2], [2, 1])
    b = tensor(b"b", b"BFloat16Storage", b"1", 3, 1, [2], [1])
    plain = b"\x80\x02}q\x00(" + a + b + b"u."
    ordered = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(" + a + b"u}" + text(b"_metadata")
    ordered += b"h\x00)Rsb."
    new = b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94N\x88\x87."
    refused = b"\x80\x02cos\nsystem\n" + text(b"id") + b"\x85R."
    storages = {"m/data/0": bytes(16), "m/data/1": bytes(6)}
    for name, pickle in {"plain": plain, "ordered": ordered, "new": new, "refused": refused}.items():
        write("unpickle", name + ".pkl", pickle)
        write("unpickle", name + ".bin", archive(pickle, storages))

    config = {
        "architectures": ["OpenMoeForCausalLM"], "num_hidden_layers": 4, "hidden_size": 64,
        "intermediate_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3,
        "head_dim": 16, "vocab_size": 512, "num_experts": 8, "moe_layer_interval": 2,
    }
    newer = {"router_topk": 2, "router_min_capacity": 4, "router_capacity_factor_eval": 2.0,
             "router_drop_tks": True, "torch_dtype": "bfloat16", "rope_scaling": None}
    older = {"topk": 2, "min_capacity": 4, "capacity_factor_eval": 2.0, "drop_tks": True,
             "gated": True, "hidden_act": "swiglu", "tie_word_embeddings": False}
    write("hfconfig", "newer.json", json.dumps({**config, **newer}).encode())
    write("hfconfig", "older.json", json.dumps({**config, **older}).encode())

    # The fuzz target puts the checksum in.
    one = bytes([5, 255, 1, 32, 2, 32, 0, 1]) + bytes([7, 1, 0, 0, 0, 0, 0, 0])
    two = bytes([0, 1, 1, 1, 2, 1, 3, 1]) + bytes([3, 144, 4, 128, 0, 0, 0, 0])
    for name, records in {"empty": {}, "one": {7: one}, "three": {0: one, 7: two, 19: one}}.items():
        image = b"OMROUTES" + struct.pack("<7I", 1, 2, 8, 2, 20, 4, len(records))
        image += b"".join(struct.pack("<I", i) + slots for i, slots in records.items())
        write("routing_table", name, image + bytes(8))

    # The first byte is the kind, the second how to walk.
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 2}, "b": {"anyOf": [
        {"type": "string", "pattern": "^a+$"}, {"$ref": "#"}]}}, "required": ["a"], "allOf": [{"$ref": "#/$defs/x"}],
        "$defs": {"x": {"properties": {"a": {"maximum": 9}}}}}
    tools = {"tools": [{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}]}
    grammars = ("", json.dumps(schema), r"(a|b\d{1,3})*[^x-z]?", '["yes","no","\u00e9"]',
                'root ::= "a" x* # so\nx ::= [0-9]+ | "(" root ")" | "b"{2,3}', json.dumps(tools))
    for kind, grammar in enumerate(grammars):
        write("grammar", f"kind{kind}", bytes([kind, 7 * kind]) + grammar.encode())


if __name__ == "__main__":
    main()

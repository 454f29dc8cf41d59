# SPDX-License-Identifier: Apache-2.0
"""The chat format as token ids, and the training of the demo model's SentencePiece vocabulary.

A chat is  [0] sp("<<SYS>>\\n{system}\\n<</SYS>>\\n\\n")  and then, per turn,  [2] sp("[INST] {user} [/INST]"), where
a prompt ends, or  [2] sp("[INST] {user} [/INST] {assistant} ") [1]  for a finished turn. No piece crosses a
space, so the prompt of a turn is a prefix of the finished turn.
"""
import collections
import io
import json
import os
import re
import string
import struct

import dialogues

PAD, EOS, BOS, UNK = 0, 1, 2, 3         # <pad> doubles as the start token
PIECES = 1984                           # trained; TOOL_PIECES stand behind them
ROWS = (PIECES + 63) // 64 * 64 + 64    # the model's vocabulary: padding rows behind the tokenizer's pieces
# The JSON of tools and calls, which would else cost a token for each character. Every piece has a character that
# stands in no word, so other text is cut as before.
TOOL_PIECES = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", '{"name":"', '","arguments":{"',
    '","description":"', '","parameters":{"', 'type":"object","', 'properties":{"', '":{"type":"string',
    '":{"type":"integer', '":{"type":"number', '"}},"', 'required":["', '"]}}', '"}}', '"}', '"},"', '","', '":"',
    '":', ',"', '{"', 'additionalProperties":false}}', '"],"', "}}", "get_", "get_weather", "get_time", "_weather",
    "_time", "set_timer", '"result":', '"weather":"', '"temperature":', '"time":"', '"error":"', '"population":',
    '"meaning":"', '"status":"')


def train_tokenizer(path, seed, dialogue_count=12000):
    """Unigram with byte fallback over generated text; the same seed gives the same file."""
    import sentencepiece as spm
    stream = dialogues.training(seed)
    lines = [f"<<SYS>> {dialogues.DEFAULT_SYSTEM} <</SYS>>"] * 200
    # every printable character alone, so that no ordinary text falls back to bytes
    lines += [" ".join(string.printable.strip() +
                       "äöüßàâçéèêëîïôùûñáíóúãõåøæœčšžćğışłńśźż¿¡€°£§…–’“”«»")] * 20
    for _ in range(dialogue_count):
        one = next(stream)
        for user, reply in zip(one[1::2], one[2::2]):
            lines.append(f"[INST] {user['content']} [/INST] {reply['content']}")
    # SentencePiece only considers what stands in two different surroundings, so each common word gets more
    seen = collections.Counter(word for line in lines for word in re.findall(r"[^\W\d_]+", line))
    lines += [f"{w} {w}. {w}, {w}? {w}! [{w}" for w, times in sorted(seen.items()) if times >= 8]
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="unigram", vocab_size=PIECES, byte_fallback=True,
        character_coverage=1.0, split_digits=True, normalization_rule_name="nmt_nfkc", pad_id=PAD, eos_id=EOS,
        bos_id=BOS, unk_id=UNK, pad_piece="<pad>", eos_piece="</s>", bos_piece="<s>", unk_piece="<unk>",
        num_threads=1, shuffle_input_sentence=False, minloglevel=1)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(model.getvalue() + _tool_pieces())


def _tool_pieces():
    """TOOL_PIECES as a piece of a SentencePiece file: field 1 of the whole holds text (1) and score (2)."""
    out = b""
    for i, text in enumerate(TOOL_PIECES):      # longer ones win, and no two ways to cut a text score the same
        piece = b"\x0a" + bytes([len(text)]) + text.encode() + b"\x15" + struct.pack("<f", -4.0 - i / 256)
        out += b"\x0a" + bytes([len(piece)]) + piece
    return out


def load_tokenizer(path):
    import sentencepiece as spm
    return spm.SentencePieceProcessor(model_file=path)


def system_ids(sp, system):
    return [PAD] + sp.encode(f"<<SYS>>\n{system}\n<</SYS>>\n\n")


def prompt_ids(sp, user):
    return [BOS] + sp.encode(f"[INST] {user} [/INST]")


def finished_ids(sp, user, reply):
    return [BOS] + sp.encode(f"[INST] {user} [/INST] {reply} ") + [EOS]


def dialogue_ids(sp, dialogue, room):
    """A dialogue's ids and the spans (start, end) of its assistant turns, whole turns up to `room` tokens."""
    dialogue = dialogues.rendered(dialogue)
    ids, spans = system_ids(sp, dialogue[0]["content"]), []
    for user, reply in zip(dialogue[1::2], dialogue[2::2]):
        turn = finished_ids(sp, user["content"], reply["content"])
        if len(ids) + len(turn) > room:
            break
        spans.append((len(ids) + len(prompt_ids(sp, user["content"])), len(ids) + len(turn)))
        ids += turn
    return ids, spans


def write_tokenizer_files(folder):
    """The two small files that name the special tokens beside spiece.model."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {**names, "tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 1024,
                "clean_up_tokenization_spaces": False}
    for name, content in (("special_tokens_map.json", names), ("tokenizer_config.json", settings)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(content, f, indent=2)
            f.write("\n")

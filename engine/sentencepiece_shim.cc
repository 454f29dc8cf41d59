// SPDX-License-Identifier: Apache-2.0
//
// sentencepiece_shim.cc: the C face of the SentencePiece library. No exception and no C++ type
// leaves this file. A loaded model is read-only: every function but sp_open and sp_close may be
// called from any thread.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include <sentencepiece_processor.h>

// In C a struct and a function may share a name (engine_info); C++ warns of it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
extern "C" {
#include "engine/tokenizer.h"
}
#pragma GCC diagnostic pop

struct sp {
    sentencepiece::SentencePieceProcessor processor;
    bool adds_space = false;
};

static bool first_piece_is_spaced(const sentencepiece::SentencePieceProcessor &p)
{
    std::vector<int> ids;
    return p.Encode("a", &ids).ok() && !ids.empty() &&
           p.IdToPiece(ids[0]).compare(0, 3, "\xe2\x96\x81") == 0;
}

struct sp *sp_open(const char *model, size_t n, char *message, size_t message_cap)
{
    struct sp *s = nullptr;
    try {
        s = new sp;
        const auto status = s->processor.LoadFromSerializedProto(absl::string_view(model, n));
        if (status.ok()) {
            s->adds_space = first_piece_is_spaced(s->processor);
            return s;
        }
        snprintf(message, message_cap, "%s", status.ToString().c_str());
    } catch (const std::exception &e) {
        snprintf(message, message_cap, "%s", e.what());
    } catch (...) {
        snprintf(message, message_cap, "the library failed");
    }
    delete s;
    return nullptr;
}

void sp_close(struct sp *s)
{
    delete s;
}

int sp_size(const struct sp *s)
{
    return s->processor.GetPieceSize();
}

const char *sp_piece(const struct sp *s, int id)
{
    return id >= 0 && id < sp_size(s) ? s->processor.IdToPiece(id).c_str() : "";
}

enum sp_type sp_piece_type(const struct sp *s, int id)
{
    if (id < 0 || id >= sp_size(s)) return SP_UNUSED;
    if (s->processor.IsControl(id)) return SP_CONTROL;
    if (s->processor.IsUnknown(id)) return SP_UNKNOWN;
    if (s->processor.IsByte(id)) return SP_BYTE;
    return s->processor.IsUnused(id) ? SP_UNUSED : SP_NORMAL;
}

int sp_id(const struct sp *s, const char *piece)
{
    try {
        /* An unknown name gets the unknown piece's id, which is no answer. */
        const int id = s->processor.PieceToId(piece);
        return std::strcmp(sp_piece(s, id), piece) == 0 ? id : -1;
    } catch (...) {
        return -1;
    }
}

bool sp_adds_dummy_prefix(const struct sp *s)
{
    return s->adds_space;
}

long sp_encode(const struct sp *s, const char *text, size_t n, int32_t **ids)
{
    *ids = nullptr;
    try {
        std::vector<int> v;
        if (!s->processor.Encode(absl::string_view(text, n), &v).ok()) return CFG_EINTERNAL;
        *ids = static_cast<int32_t *>(std::malloc((v.size() + 1) * sizeof **ids));
        if (!*ids) return CFG_ENOMEM;
        for (size_t i = 0; i < v.size(); i++) (*ids)[i] = v[i];
        return static_cast<long>(v.size());
    } catch (const std::bad_alloc &) {
        return CFG_ENOMEM;
    } catch (...) {
        return CFG_EINTERNAL;
    }
}

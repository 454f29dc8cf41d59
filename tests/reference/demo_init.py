# SPDX-License-Identifier: Apache-2.0
"""Initial weights of the demo model: noise, plus the beginnings of copying.

Copying from earlier text takes two attention heads in a row: one that notes beside each token which one came
before it, and a later one that looks for the place where the present token stood before and reads what
followed. Each is useless without the other, so a small model spends most of a short training waiting for
the pair to appear by chance. Here both begin in a weak form, and training shapes them from there:

- dimension 0 of every embedding is one constant, so that a head can attend by distance alone: a key that is
  constant before rotation meets a query turned back by `shift` positions, and scores highest at that distance;
- the head for shift 1 writes a projection of the previous token into NOTE, dimensions the embeddings leave free;
- induction heads compare NOTE of every earlier place with the same projection of the present token, in the slow
  dimensions of the rotation, and write what they find through a rotation that lm_head undoes.
"""
import torch

CONSTANT = 4.0          # dimension 0 of every embedding
SPREAD = 0.5            # the other dimensions
FAST = 6                # the first so many rotation frequencies tell neighbours apart
SLOW = 7                # from here on the rotation is slow enough to compare contents
SHIFT_HEADS = ((0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 0), (1, 0, 1), (1, 1, 2), (2, 0, 1))  # layer, head, distance
INDUCTION_HEADS = ((1, 2), (1, 3), (2, 1), (2, 2), (3, 0), (3, 1))                          # layer, head


def _noise(model, g):
    for name, p in model.named_parameters():
        if p.dim() == 1:
            continue
        std = p.shape[1] ** -0.5 if p.dim() == 2 or p.dim() == 3 else 1.0
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            std *= model.cfg["head_dim"] ** -0.25       # scores are not divided by sqrt(head_dim)
        elif name.endswith(("o_proj.weight", "down_proj.weight", "wo")):
            std = 0.0                                   # every layer begins as the identity
        elif name.endswith("gate_weight"):
            std *= 0.5
        elif name.endswith("embed_tokens.weight"):
            std = SPREAD
        p.copy_(torch.randn(p.shape, generator=g) * std)


def _orthogonal(rows, columns, g):
    """`rows` orthonormal rows."""
    return torch.linalg.qr(torch.randn(columns, columns, generator=g))[0][:rows].contiguous()


def _shift_head(attention, head, distance, inverse, constant):
    """Attends to the place `distance` tokens back."""
    n, half = attention.head_dim, attention.head_dim // 2
    size = 6.0 ** 0.5 / constant
    for i in range(FAST):
        one, two = head * n + i, head * n + half + i
        angle = torch.tensor(distance * inverse[i])
        for weight, x, y in ((attention.k_proj.weight, 1.0, 0.0),
                             (attention.q_proj.weight, angle.cos(), -angle.sin())):
            weight[[one, two]] *= 0.3
            weight[one, 0], weight[two, 0] = size * x, size * y


@torch.no_grad()
def init_weights(model, seed):
    cfg, g = model.cfg, torch.Generator().manual_seed(seed)
    dim, n = cfg["hidden_size"], cfg["head_dim"]
    half = n // 2
    _noise(model, g)
    embed = model.model.embed_tokens.weight
    embed[:, 0] = CONSTANT
    embed[:, dim - n:] = 0.0                                    # NOTE
    free = dim - n - 1
    after_norm = ((SPREAD ** 2 * free + CONSTANT ** 2) / dim) ** -0.5      # what the first rmsnorm multiplies by
    inverse = [cfg["rope_theta"] ** -(i / half) for i in range(half)]
    layers = model.model.layers
    for layer, head, distance in SHIFT_HEADS:
        _shift_head(layers[layer].self_attn, head, distance, inverse, CONSTANT * after_norm)
    project = torch.zeros(n, dim)
    project[:, 1:dim - n] = _orthogonal(n, free, g)
    note = layers[0].self_attn
    note.v_proj.weight[:n] = project
    note.o_proj.weight[dim - n:, :n] = 3.0 * torch.eye(n)
    turn = _orthogonal(dim, dim, g)
    for layer, head in INDUCTION_HEADS:
        a, rows = layers[layer].self_attn, slice(head * n, (head + 1) * n)
        for weight in (a.q_proj.weight, a.k_proj.weight):
            weight[rows] *= 0.3
        for i in list(range(SLOW, half)) + list(range(half + SLOW, n)):
            a.q_proj.weight[head * n + i] = 1.2 * project[i]
            a.k_proj.weight[head * n + i] = 0.0
            a.k_proj.weight[head * n + i, dim - n + i] = 1.2
        read = torch.zeros(n, dim)
        read[:, 1:dim - n] = _orthogonal(n, free, g)
        a.v_proj.weight[rows] = read
        a.o_proj.weight[:, rows] = turn @ read.t()
    plain = embed.clone()
    plain[:, 0] = 0.0
    model.lm_head.weight.copy_(0.05 * plain @ turn.t())

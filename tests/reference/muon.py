# SPDX-License-Identifier: Apache-2.0
"""The optimiser of the demo model: Muon for the weight matrices of the layers, AdamW for everything else.

Muon follows the momentum of the gradient after making it (nearly) orthogonal with a few Newton-Schulz steps;
matrices of one shape, the experts' among them, are worked on together as one batch.
"""
import torch
import torch.distributed as dist


def orthogonalise(g, steps=5):
    """Pushes the singular values of each matrix of g [n, rows, cols] towards 1."""
    a, b, c = 3.4445, -4.7750, 2.0315       # the widely used quintic: steep at zero, close to 1 afterwards
    tall = g.shape[1] > g.shape[2]
    x = g.transpose(1, 2) if tall else g
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()      # precise enough, and faster
    for _ in range(steps):
        m = x @ x.transpose(1, 2)
        x = a * x + (b * m + c * (m @ m)) @ x
    return (x.transpose(1, 2) if tall else x).to(g.dtype)


class Muon:
    def __init__(self, model, lr, adam_lr, weight_decay, head_dim, momentum=0.95):
        """With torch.distributed running, the processes share the work on the matrices between them."""
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.lr, self.adam_lr, self.weight_decay, self.momentum = lr, adam_lr, weight_decay, momentum
        self.matrices, adam = {}, []
        for name, p in model.named_parameters():
            if ".layers." in name and p.dim() >= 2 and not name.endswith("gate_weight"):
                expert = p.dim() == 3
                fan_out, fan_in = (p.shape[2], p.shape[1]) if expert else p.shape
                scale = max(1.0, fan_out / fan_in) ** 0.5
                # scores are not divided by sqrt(head_dim): q and k take as much smaller steps instead
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    scale *= head_dim ** -0.25
                self.matrices.setdefault(tuple(p.shape[-2:]), []).append((name, p, scale))
            else:
                adam.append(p)
        self.buffers = {name: torch.zeros_like(p) for group in self.matrices.values() for name, p, _ in group}
        self.adam = torch.optim.AdamW(adam, lr=adam_lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)

    @torch.no_grad()
    def step(self, factor):
        """One step with both learning rates times `factor`; clears the gradients."""
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * factor
        torch.nn.utils.clip_grad_norm_(self.adam.param_groups[0]["params"], 1.0)
        self.adam.step()
        lr = self.lr * factor
        for shape, group in self.matrices.items():
            updates = []
            for name, p, _ in group:
                buffer = self.buffers[name]
                buffer.lerp_(p.grad, 1 - self.momentum)
                updates.append(p.grad.lerp(buffer, self.momentum).view(-1, *shape))
            sizes, update = [u.shape[0] for u in updates], torch.cat(updates)
            if self.world > 1:
                first, last = (len(update) * r // self.world for r in (self.rank, self.rank + 1))
                done = torch.zeros_like(update)
                done[first:last] = orthogonalise(update[first:last])
                dist.all_reduce(done)
            else:
                done = orthogonalise(update)
            done = done.split(sizes)
            for (_, p, scale), update in zip(group, done):
                p.mul_(1 - lr * self.weight_decay)
                p.add_(update.reshape(p.shape), alpha=-lr * scale)
                p.grad = None
        self.adam.zero_grad(set_to_none=True)

    def state(self):
        return {"buffers": self.buffers, "adam": self.adam.state_dict()}

    def load(self, state):
        self.adam.load_state_dict(state["adam"])
        for name, buffer in state["buffers"].items():
            self.buffers[name].copy_(buffer)

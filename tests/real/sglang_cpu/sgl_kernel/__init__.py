"""Pure-PyTorch stand-in for the CPU build of `sgl_kernel`, for tests only.

Lets an unmodified SGLang 0.5.23 wheel serve tiny models on a CPU without AMX,
with `--device cpu` and the attention backend `intel_amx`, and with NGRAM / STANDALONE /
EAGLE speculative decoding.  Every function is an original, slow, readable
implementation of what SGLang's call sites expect; nothing is taken from
SGLang or sgl-kernel.  Put the parent directory on PYTHONPATH to use it.

What is here:
  * attention ops under torch.ops.sgl_kernel (what the intel_amx backend calls)
  * the KV-slot, tree and verify helpers that SGLang imports by name
  * any other name resolves to a function that raises when it is called, because
    SGLang imports many kernels that a plain Llama on CPU never runs.

`convert_weight_packed` is left unregistered on purpose: SGLang takes its absence
to mean "no AMX kernels", so all linear, norm and rope layers stay plain PyTorch.
"""

import ctypes

import torch

__version__ = "0.4.10"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel stand-in has no {name}")

    return missing


def _attend(q, k, v, visible, scale, cap, sinks):
    """q [n, heads, d], k and v [m, kv_heads, d], visible [n, m] -> [n, heads, d]."""
    n, heads, d = q.shape
    kv_heads = k.shape[1]
    q = q.float().view(n, kv_heads, heads // kv_heads, d)
    scores = torch.einsum("nhgd,mhd->hgnm", q, k.float()) * scale
    if cap > 0:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:  # one extra logit per head that takes weight but gives no value
        sink = sinks.float().view(kv_heads, -1, 1, 1).expand(-1, -1, n, 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[0]]
    return torch.einsum("hgnm,mhd->nhgd", weights, v.float()).reshape(n, heads, -1)


def _visible(q_pos, k_pos, causal, window):
    seen = torch.ones(len(q_pos), len(k_pos), dtype=torch.bool)
    if causal:
        seen &= k_pos[None] <= q_pos[:, None]
    if window > 0:
        seen &= q_pos[:, None] - k_pos[None] < window
    return seen


def _decode(
    q,
    k_buf,
    v_buf,
    k_scale,
    v_scale,
    out,
    k,
    v,
    loc,
    attn_logits,
    req_to_token,
    req_idx,
    seq_lens,
    scale,
    cap,
    is_cross,
    window,
    encoder_lens,
    sinks,
):
    assert not is_cross, "cross attention is not supported"
    if k is not None:
        k_buf[loc] = k.reshape(-1, *k_buf.shape[1:]).to(k_buf.dtype)
        v_buf[loc] = v.reshape(-1, *v_buf.shape[1:]).to(v_buf.dtype)
    for i, (req, length) in enumerate(zip(req_idx.tolist(), seq_lens.tolist(), strict=False)):
        slots = req_to_token[req, :length].long()
        seen = _visible(torch.tensor([length - 1]), torch.arange(length), True, window)
        out[i : i + 1] = _attend(
            q[i : i + 1],
            k_buf[slots].float() * k_scale,
            v_buf[slots].float() * v_scale,
            seen,
            scale,
            cap,
            sinks,
        )


def _extend(
    q,
    k,
    v,
    out,
    k_buf,
    v_buf,
    k_scale,
    v_scale,
    req_to_token,
    req_idx,
    seq_lens,
    extend_lens,
    start_locs,
    max_extend,
    scale,
    cap,
    is_cross,
    window,
    encoder_lens,
    sinks,
    tree_mask,
    causal,
):
    """New tokens attend to the cached prefix and to each other.

    The caller has already stored the new K/V in the cache, so all of it is read
    from there.  tree_mask is the flattened [batch, n, n] "i may see j" table.
    """
    assert not is_cross, "cross attention is not supported"
    rows = zip(req_idx.tolist(), seq_lens.tolist(), extend_lens.tolist(), start_locs.tolist(), strict=False)
    for i, (req, length, new, start) in enumerate(rows):
        slots = req_to_token[req, :length].long()
        positions = torch.arange(length)
        seen = _visible(positions[length - new :], positions, causal, window)
        if tree_mask is not None:
            seen[:, length - new :] = tree_mask.flatten()[i * new * new :][: new * new].view(new, new)
        out[start : start + new] = _attend(
            q[start : start + new],
            k_buf[slots].float() * k_scale,
            v_buf[slots].float() * v_scale,
            seen,
            scale,
            cap,
            sinks,
        )


_lib = torch.library.Library("sgl_kernel", "DEF")
_lib.define(
    "decode_attention_cpu(Tensor q, Tensor(a!) k_buf, Tensor(b!) v_buf, float k_scale,"
    " float v_scale, Tensor(c!) out, Tensor? k, Tensor? v, Tensor loc, Tensor attn_logits,"
    " Tensor req_to_token, Tensor req_idx, Tensor seq_lens, float scale, float cap,"
    " bool is_cross, int window, Tensor? encoder_lens, Tensor? sinks) -> ()"
)
_lib.define(
    "extend_attention_cpu(Tensor q, Tensor? k, Tensor? v, Tensor(a!) out, Tensor k_buf,"
    " Tensor v_buf, float k_scale, float v_scale, Tensor req_to_token, Tensor req_idx,"
    " Tensor seq_lens, Tensor extend_lens, Tensor start_locs, int max_extend, float scale,"
    " float cap, bool is_cross, int window, Tensor? encoder_lens, Tensor? sinks,"
    " Tensor? tree_mask, bool causal) -> ()"
)
_lib.impl("decode_attention_cpu", _decode, "CPU")
_lib.impl("extend_attention_cpu", _extend, "CPU")


def copy_all_layer_kv_cache_cpu(data_ptrs, strides, tgt_loc, src_loc):
    """Copy cache rows src -> tgt in every layer buffer, given by raw address."""
    pairs = list(zip(tgt_loc.tolist(), src_loc.tolist(), strict=False))
    for base, row in zip(data_ptrs.tolist(), strides.tolist(), strict=False):
        saved = [ctypes.string_at(base + src * row, row) for _, src in pairs]
        for (tgt, _), data in zip(pairs, saved, strict=False):
            ctypes.memmove(base + tgt * row, data, row)


def assign_req_to_token_pool_cpu(req_idx, req_to_token, start, end, loc, pool_len):
    """Write consecutive runs of `loc` into columns start:end of each request's row."""
    used = 0
    for req, a, b in zip(req_idx.tolist(), start.tolist(), end.tolist(), strict=False):
        req_to_token[req, a:b] = loc[used : used + b - a].to(req_to_token.dtype)
        used += b - a


def assign_extend_cache_locs_cpu(req_idx, req_to_token, start, end, out, pool_len):
    """The reverse: pack columns start:end of each request's row into `out`."""
    used = 0
    for req, a, b in zip(req_idx.tolist(), start.tolist(), end.tolist(), strict=False):
        out[used : used + b - a] = req_to_token[req, a:b].to(out.dtype)
        used += b - a


def assign_draft_cache_locs_contiguous_cpu(req_idx, req_to_token, seq_lens, out, pool_len, topk, steps):
    """The topk * steps slots that follow each request's committed tokens."""
    end = seq_lens + topk * steps
    assign_extend_cache_locs_cpu(req_idx, req_to_token, seq_lens, end, out, pool_len)


def build_draft_decode_metadata_cpu(req_to_token, req_idx, seq_lens, topk, steps, pool_len):
    """A token table with one row per draft branch: committed slots, then that branch's own."""
    table = torch.zeros(len(req_idx) * topk, pool_len, dtype=req_to_token.dtype)
    for i, (req, length) in enumerate(zip(req_idx.tolist(), seq_lens.tolist(), strict=False)):
        for branch in range(topk):
            row, own = table[i * topk + branch], length + branch * steps
            row[:length] = req_to_token[req, :length]
            row[length : length + steps] = req_to_token[req, own : own + steps]
    return table


def build_tree_kernel_efficient_cpu(
    parents, selected, seq_lens, mask, positions, index, next_token, next_sibling, topk, depth, n, mask_mode
):
    """Turn the kept draft candidates into a tree of n nodes (node 0 is the root).

    Candidate c was expanded from entry c // topk of `parents` (0 is the root), which
    names another candidate.  Fills depth positions, the "may see" mask and the
    first-child / next-sibling links (-1 where none).
    """
    full = int(mask_mode) == 0  # rows also hold the committed prefix
    offset = 0
    for b, length in enumerate(seq_lens.tolist()):
        kept = selected[b].tolist()
        parent = [-1]
        for cand in kept[: n - 1]:
            entry = cand // topk
            if entry == 0:
                parent.append(0)
            else:
                above = int(parents[b, entry])
                parent.append(kept.index(above) + 1 if above in kept else -1)
        width = n + (length if full else 0)
        block = mask[offset : offset + n * width].view(n, width)[:, width - n :]
        offset += n * width
        block.fill_(False)
        block[:, 0] = True
        for node in range(n):
            index[b, node] = b * n + node
            steps, up = 0, node
            while up > 0:
                block[node, up] = True
                steps, up = steps + 1, parent[up]
            positions[b * n + node] = length + steps
        for node in range(n - 1, 0, -1):
            if parent[node] >= 0:
                next_sibling[b, node] = next_token[b, parent[node]]
                next_token[b, parent[node]] = node


def verify_tree_greedy_cpu(
    predicts,
    accept_index,
    accept_token_num,
    candidates,
    retrive_index,
    retrive_next_token,
    retrive_next_sibling,
    target_predict,
):
    """Walk each tree from its root while a child equals the target's greedy choice."""
    for b in range(candidates.shape[0]):
        tokens, wanted = candidates[b].tolist(), target_predict[b].tolist()
        flat, child, sibling = (
            t[b].tolist() for t in (retrive_index, retrive_next_token, retrive_next_sibling)
        )
        node, accepted = 0, 0
        accept_index[b, 0] = flat[0]
        while True:
            predicts[flat[node]] = wanted[node]
            if accepted + 1 >= accept_index.shape[1]:
                break
            nxt = child[node]
            while nxt != -1 and tokens[nxt] != wanted[node]:
                nxt = sibling[nxt]
            if nxt == -1:
                break
            node, accepted = nxt, accepted + 1
            accept_index[b, accepted] = flat[node]
        accept_token_num[b] = accepted


def fill_bonus_tokens_cpu(accept_tokens, accept_lens, bonus_tokens, accept_stride):
    """Each request's last accepted token (accept_lens counts it)."""
    table = accept_tokens.reshape(-1, accept_stride)
    bonus_tokens.copy_(table.gather(1, accept_lens.long()[:, None] - 1)[:, 0])


def fill_accept_out_cache_loc_cpu(accept_index, out_cache_loc, accept_out_cache_loc):
    """Pack the slots of the accepted nodes (index -1 is padding)."""
    keep = accept_index.flatten().long()
    keep = keep[keep >= 0]
    accept_out_cache_loc[: len(keep)] = out_cache_loc[keep]

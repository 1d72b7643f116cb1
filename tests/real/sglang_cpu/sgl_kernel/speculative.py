"""The one helper that SGLang's NGRAM worker imports from sgl_kernel.speculative."""


def reconstruct_indices_from_tree_mask(
    mask, seq_lens, positions, index, next_token, next_sibling, batch_size, n
):
    """Depth positions and first-child / next-sibling links (-1 where none) of each
    tree, from its [n, n] "node i may see node j" mask."""
    mask = mask.view(-1)[: batch_size * n * n].view(batch_size, n, n)
    for b, length in enumerate(seq_lens.tolist()):
        above = [[j for j in range(i) if row[j]] for i, row in enumerate(mask[b].tolist())]
        last_child = {}
        for i in range(n):
            index[b, i] = b * n + i
            positions.view(-1)[b * n + i] = length + len(above[i])
            next_token[b, i] = next_sibling[b, i] = -1
            if above[i]:
                parent = above[i][-1]
                if parent in last_child:
                    next_sibling[b, last_child[parent]] = i
                else:
                    next_token[b, parent] = i
                last_child[parent] = i

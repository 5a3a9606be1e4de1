"""What survives of a full fine-tune when it becomes an adapter by `extract_lora`?

    python -m studies.extract            # run all missing runs, also after an interrupted start
    python -m studies.extract --report   # write the section of docs/evidence/combining.md

Models of the study of operators are fine-tuned whole on two of its tasks, as that study does it.
`extract_lora` cuts the difference to the ranks 1, 4 and 16. Beside it, LoRA of the same rank trains
on the same layers, with its own learning rate.

The goal was set before any run. In every task and with every number of simulations, over three
seeds: (1) rank 16 has at most 1.1 times the error of the full fine-tune; (2) rank 4 keeps at least
half of what the fine-tune gained over the untouched model; (3) at every rank, the extracted adapter
has at most the error of the LoRA that trained at this rank. Changed biases are left out
(`leftovers="drop"`), because an adapter does not hold them.
"""

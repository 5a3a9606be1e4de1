"""A force field adapted to another potential: SevenNet-0, few frames, and what it forgets.

    python -m studies.equivariant            # run all missing runs, also after an interrupted start
    python -m studies.equivariant --quick    # see that everything runs; discard the results
    python -m studies.equivariant --report   # write docs/equivariant-study.md from the results

The goal was set before the first run of the study. With LoRA on the matrix of each irrep path:

* the force error is at most the force error of full fine-tuning, in at least two of the three
  numbers of frames (10, 20, 50), in the mean over the seeds;
* the source changes less: the forces of other materials drift from SevenNet-0 by at most half of
  their drift under full fine-tuning, with each number of frames;
* at most 10 % of the parameters train.

`docs/equivariant-study.md` describes the protocol and the results.
"""

"""A force field adapted to another potential: few frames, and what the model forgets.

    python -m studies.equivariant            # run all missing runs, also after an interrupted start
    python -m studies.equivariant --quick    # see that everything runs; discard the results
    python -m studies.equivariant --report   # write docs/evidence/equivariant-study.md

The goal was set before the first run of the study. With LoRA on the matrix of each irrep path:

* the force error on the target is at most full fine-tuning's, in at least two of the three numbers
  of frames (10, 20, 50), in the mean over the seeds;
* the source is kept better: the force error on salts and semiconductors grows by at most half of
  its growth under full fine-tuning, with each number of frames;
* at most 30 % of the parameters train.

`docs/evidence/equivariant-study.md` describes the protocol and the results.
"""

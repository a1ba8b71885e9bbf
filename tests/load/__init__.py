"""Commands under load: a large simulated survey through all of them, with memory, threads and open files watched.

`python -m tests.load FOLDER --stars 800000` simulates a survey in FOLDER, converts it, pretrains `tiny` on it for one
epoch, embeds it with what was trained, and prints a table. `--minutes` ends each step early, so that a step can be
watched for an hour without a larger survey. A step that is done is not done again.
"""

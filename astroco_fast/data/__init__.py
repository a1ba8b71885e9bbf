"""Light curves in: files or objects -> clean -> windows -> packed store -> batches -> masks."""

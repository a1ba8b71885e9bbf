"""Commands that are killed at every kind of disk change, or run out of disk, and must lose nothing.

`python -m tests.crash` runs each command once undisturbed and records the disk changes that it makes. Then it runs the
command again and again in new folders, kills it (SIGKILL) right before one of these changes, runs it once more, and
compares every file with those of the undisturbed run. A kill before change n + 1 is a kill after change n. In a second
round no file may grow beyond a limit, as on a full disk: the command must end with one line and exit status 2, and
must do its work once there is room. Of two ranks, one, the other or both are killed.
"""

"""The program that a prepared interpreter runs: it imports, waits for a job, and becomes that job without a fork.

It is given to `python3 -c` in an image, so it stands alone: CPython 3.9 to 3.14, the standard
library, nothing of sandfleet. `python_source.source()` makes it shorter.

Arguments: the descriptors of the request, the report and the job's stdin, stdout and stderr; then
the modules to import, with commas; then the folders that can be written, which are empty. Reports
are lines: `p` prepared, `t` a job was taken, `x REASON`.

How the job's code runs: CPython runs it, by the functions of its C API that `python3` itself uses
for a command, a file and stdin. They are called as `sys.excepthook` after this program has ended by an
exception. So no frame of this program is below the job's, in no traceback and in no stack. `-m`,
folders and zip files go through runpy, with one frame of this program below. No traceback shows it.
"""

#!/usr/bin/env bash
# snakemake 9.27.1 (PyPI): a rule whose `params` changed and whose output comes out equal to the byte.
#
# Snakemake keeps checksums of small files, so that a file that was made again as it was re-runs nothing
# (--max-checksum-file-size). One expects that of every run. What happens: that holds only if the file was
# made by a run of its own. If one command makes the file and what follows from it, all that follows runs
# again, however equal the file: it was decided before the first job, and is not looked at again.
# (snakemake/dag.py: dependents of a job that runs are marked in a search from it; after the job nothing
# takes the mark away.) So the same change costs a copy of a file, or everything, by how it is typed.
#
# Makes a file and a result of it, then changes the parameter of the file, whose content stays: in one
# command, and in two. Prints how often the result was made each time; fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check snakemake==9.27.1
cat > Snakefile <<'CODE'
rule result:
    input:
        "file.txt",
    output:
        "result.txt",
    shell:
        "cp {input} {output}; echo made >> times.txt"


rule file:
    output:
        "file.txt",
    params:
        check=config["check"],
    shell:
        "echo the same > {output}"
CODE
run() { venv/bin/snakemake --cores 1 "$@" > log 2>&1 || { cat log; exit 1; }; }
times() { grep -c made times.txt; }
run --config check=1
first=$(times)
run --config check=2
in_one=$(times)
run --config check=3 -- file.txt
run --config check=3
in_two=$(times)
echo "the result was made: at first $first times, after one command $in_one, after two commands $in_two"
grep -q "Nothing to be done" log
test "$first $in_one $in_two" = "1 2 2"

#!/usr/bin/env bash
# snakemake 9.27.1 (PyPI): a rule whose `params` changed and which declares one output more than before.
#
# One expects that the change of a parameter makes the rule run again ("rerun triggers": mtime, params,
# input, software-env, code), whatever else changed with it. What happens: as long as nothing that is
# asked for needs the new output, Snakemake compares nothing of the rule with its records, since one of
# its files has none, and says "Nothing to be done". A result of the old parameter passes for one of
# the new. (snakemake/dag.py: a job without metadata of all its outputs is not asked for changes.)
#
# Makes a result with one parameter, then plans it with another: with the same outputs, and with one
# more. Prints which rules would run; fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check snakemake==9.27.1
cat > Snakefile <<'CODE'
rule answer:
    input:
        "0.txt",
    output:
        "answer.txt",
    shell:
        "cp {input} {output}"


rule make:
    output:
        expand("{number}.txt", number=range(int(config["files"]))),
    params:
        text=config["text"],
    shell:
        "for file in {output}; do echo {params.text} > $file; done"
CODE
run() { venv/bin/snakemake --cores 1 "$@" 2>&1; }
run --config files=1 text=old > log || { cat log; exit 1; }
same=$(run --dry-run --config files=1 text=new)
more=$(run --dry-run --config files=2 text=new)
echo "answer.txt: $(cat answer.txt)"
echo "another text, the same outputs: $(grep -E '^(rule|Nothing)' <<< "$same" | sort -u | tr '\n' ' ')"
echo "another text, one output more: $(grep -E '^(rule|Nothing)' <<< "$more" | sort -u | tr '\n' ' ')"
grep -q "^rule make" <<< "$same"
grep -q "^Nothing to be done" <<< "$more"

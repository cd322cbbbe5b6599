#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measures usmd against the kernel and against a bare userfaultfd loop, on one machine in one
run: in each round every variant of a case runs once, so that what the machine does besides hits
all of them. Prints a table of medians and of ratios (median, least, greatest of the rounds), and
writes all samples to a JSON file. Needs root."""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, "build")
POOL_MIB = 256
LIMIT_SECONDS = 300  # for one run of a program

# Name, program and arguments, what it is measured against, aim (usmd's time by that of the first
# reference, at most). "bare:N": a userfaultfd loop that resolves N pages a fault.
CASES = [
    ("first touch, sequential", ["touch", "seq", "32768", "1"],
     ["kernel", "kernel-thp", "bare:64", "usmd"], 1.5),
    ("first touch, random", ["touch", "random", "32768", "1"],
     ["kernel", "kernel-thp", "bare:1", "usmd"], None),
    ("lone fault", ["touch", "random", "4000", "256"], ["bare:1", "kernel", "usmd:lone"], 2.0),
    ("out of core, cyclic scan", ["out-of-core", "scan", "512", "131072"],
     ["swap", "swap-thp", "usmd"], None),
    ("out of core, random", ["out-of-core", "random", "512", "60000"],
     ["swap", "swap-thp", "usmd"], 1.5),
    ("out of core, zipf", ["out-of-core", "zipf", "512", "60000"],
     ["swap", "swap-thp", "usmd"], None),
    ("mmap + touch + munmap", ["calls", "map", "5000"], ["kernel", "usmd"], None),
    ("fork + exit, 16 MiB", ["calls", "fork", "200"], ["kernel", "usmd"], None),
]

NAMES = {
    "kernel": "kernel (no THP)", "kernel-thp": "kernel (THP as found)",
    "swap": "kernel swap (no THP)", "swap-thp": "kernel swap (THP as found)",
    "usmd": "usmd", "usmd:lone": "usmd (faultaround 1)",
}


class Usmd:
    """A private usmd with a pool of POOL_MIB."""

    def __init__(self, folder, name, lines):
        self.dir = os.path.join(folder, name)
        self.run_dir = os.path.join(self.dir, "run")
        state = os.path.join(self.dir, "state")
        os.makedirs(self.run_dir)
        os.makedirs(state)
        config = os.path.join(self.dir, "usmd.conf")
        with open(config, "w") as f:
            f.write("\n".join([f"memory {POOL_MIB}", "workers 2", "default policyOne",
                               f"swap {state}/swap 1G", *lines, ""]))
        self.log = open(os.path.join(self.dir, "log"), "w")
        self.process = subprocess.Popen(
            [f"{BUILD}/usmd", "--config", config, "--runtime-dir", self.run_dir,
             "--state-dir", state], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        end = time.monotonic() + 120
        while subprocess.run([f"{BUILD}/usmctl", "status"], env=self.env(), timeout=30,
                             capture_output=True).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                with open(self.log.name) as f:
                    sys.exit("usmd did not start:\n" + f.read()[-2000:])
            time.sleep(0.1)

    def env(self):
        return dict(os.environ, USMD_RUNTIME_DIR=self.run_dir)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class KernelSwap:
    """A swap file of the kernel's beside usmd's, and a memory cgroup of POOL_MIB. unavailable
    says why not, where they cannot be had."""

    def __init__(self, folder):
        self.file = os.path.join(folder, "kernel-swap")
        self.group = None
        self.active = False
        self.unavailable = self._group() or self._swap()

    def _group(self):
        v1 = "/sys/fs/cgroup/memory"
        v2 = "/sys/fs/cgroup"
        try:
            if os.path.exists(f"{v1}/memory.limit_in_bytes"):
                base, limit = v1, "memory.limit_in_bytes"
            elif os.path.exists(f"{v2}/cgroup.controllers"):
                base, limit = v2, "memory.max"
                with open(f"{v2}/cgroup.subtree_control", "w") as f:
                    f.write("+memory")
            else:
                return "no memory cgroup here"
            group = f"{base}/usm-bench-{os.getpid()}"
            os.mkdir(group)
            self.group = group
            with open(f"{group}/{limit}", "w") as f:
                f.write(str(POOL_MIB << 20))
        except OSError as e:
            return f"no memory cgroup: {e}"
        return None

    def _swap(self):
        with open("/proc/swaps") as f:
            if len(f.readlines()) > 1:
                return "another swap device is in use"
        block = bytes(1 << 20)
        with open(self.file, "wb", opener=lambda p, fl: os.open(p, fl, 0o600)) as f:
            for _ in range(1024):
                f.write(block)
            os.fsync(f.fileno())
        for command in (["mkswap", self.file], ["swapon", self.file]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            except OSError as e:
                return f"{command[0]}: {e}"
            if done.returncode:
                return f"{command[0]}: {done.stderr.strip()}"
        self.active = True
        return None

    def enter(self):
        with open(f"{self.group}/cgroup.procs", "w") as f:
            f.write(str(os.getpid()))

    def stop(self):
        if self.active:
            subprocess.run(["swapoff", self.file], timeout=120, check=False)
        if self.group:
            for _ in range(50):  # its last process may still be on its way out
                try:
                    os.rmdir(self.group)
                    break
                except OSError:
                    time.sleep(0.1)


def run_once(variant, command, cpu, daemons, swap):
    """Nanoseconds of one operation."""
    program = [f"{BUILD}/tests/{command[0]}", "--cpu", str(cpu)]
    env, enter, prefix = None, None, []
    if variant.startswith("bare:"):
        program += ["--uffd", variant[5:], "--thp", "never"]
    elif variant.startswith("usmd"):
        env = daemons[variant].env()
        prefix = [f"{BUILD}/usmctl", "run", "--"]
    else:
        if not variant.endswith("-thp"):
            program += ["--thp", "never"]
        if variant.startswith("swap"):
            enter = swap.enter
    done = subprocess.run(prefix + program + command[1:], env=env, preexec_fn=enter, timeout=LIMIT_SECONDS,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{variant}: {' '.join(command)}: status {done.returncode}\n{done.stderr}")
    return float(done.stdout)


def name_of(variant):
    if variant.startswith("bare:"):
        return f"bare userfaultfd loop, {variant[5:]} a fault"
    return NAMES[variant]


def measure(case, rounds, cpu, daemons, swap):
    name, command, variants, aim = case
    if swap.unavailable:
        variants = [v for v in variants if not v.startswith("swap")]
    samples = {v: [] for v in variants}
    for _ in range(rounds):
        for v in variants:
            samples[v].append(run_once(v, command, cpu, daemons, swap))
    ours = samples[variants[-1]]
    print(f"\n{name}")
    ratios = {}
    for v in variants:
        line = f"  {name_of(v):38} {statistics.median(samples[v]) / 1000:10.3f} us"
        if v != variants[-1]:
            r = [a / b for a, b in zip(ours, samples[v])]
            ratios[v] = {"median": statistics.median(r), "min": min(r), "max": max(r)}
            line += (f"   usmd takes {ratios[v]['median']:6.2f} times as long"
                     f" ({min(r):.2f} .. {max(r):.2f})")
        print(line)
    result = {"name": name, "command": command, "samples_nsec": samples, "ratios": ratios}
    if aim and variants[0] in ratios:
        met = ratios[variants[0]]["median"] <= aim
        result["aim"] = {"against": variants[0], "at_most": aim, "met": met}
        print(f"  aim: at most {aim} times {name_of(variants[0])}: {'met' if met else 'NOT met'}")
    sys.stdout.flush()
    return result


def thp_setting():
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as f:
            return f.read().split("[")[1].split("]")[0]
    except (OSError, IndexError):
        return "none"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default=f"{BUILD}/bench.json", help="where the samples go")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each variant (5)")
    parser.add_argument("--cpu", type=int, default=0, help="processor of the programs (0)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    if os.geteuid():
        sys.exit("bench: needs root: sudo make bench")
    # So that an interruption cleans up as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cases = [c for c in CASES if args.only in c[0]]
    used = {v for c in cases for v in c[2]}
    folder = tempfile.mkdtemp(prefix="usmd-bench.", dir=os.environ.get("USM_TEST_DIR", "/var/tmp"))
    os.chmod(folder, 0o755)
    daemons = {}
    swap = None
    try:
        swap = KernelSwap(folder)
        if "usmd" in used:
            daemons["usmd"] = Usmd(folder, "usmd", [])
        if "usmd:lone" in used:
            daemons["usmd:lone"] = Usmd(folder, "lone", ["faultaround 1"])
        print(f"Linux {platform.release()}, {os.cpu_count()} processors, THP {thp_setting()}, "
              f"pool {POOL_MIB} MiB, {args.rounds} rounds. Medians; below 1 usmd is faster.")
        if swap.unavailable:
            print(f"The kernel's swap is left out: {swap.unavailable}.")
        results = [measure(c, args.rounds, args.cpu, daemons, swap) for c in cases]
    finally:
        for d in daemons.values():
            d.stop()
        if swap:
            swap.stop()
        shutil.rmtree(folder)
    with open(args.json, "w") as f:
        json.dump({"kernel": platform.release(), "processors": os.cpu_count(),
                   "thp": thp_setting(), "pool_mib": POOL_MIB, "rounds": args.rounds,
                   "kernel_swap_left_out": swap.unavailable, "cases": results}, f, indent=1)
        f.write("\n")
    print(f"\nAll samples: {args.json}")


if __name__ == "__main__":
    main()

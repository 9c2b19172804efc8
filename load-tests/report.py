#!/usr/bin/env python3
"""The report of a load test: the samples of k6 as a timeline, then one JSON file and one HTML page.

    report.py collect SAMPLES TIMELINE      reads k6's `--out json` from a pipe until its end; keeps counts per moment
    report.py write --summary SUMMARY --timeline TIMELINE [...] OUT      OUT.json and OUT.html
    report.py render RESULT.json            the page of an earlier result, to standard output
    report.py check                         checks the page with a result of hostile texts

Uses the standard library only. scripts/load-test runs it. The page is report.html with the JSON inserted.
"""

import argparse
import datetime
import html.parser
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent

# --- collecting --------------------------------------------------------------------------------

MIN_WIDTH = 0.25  # seconds: the first width of a moment
MAX_MOMENTS = 2000  # beyond it pairs of moments merge, so that memory is bounded for a run of any length
GROWTH = 1.02  # between neighbouring latency classes: percentiles are right within 1 %
WANTED = ("api_latency", "outbox_lag_events", "outbox_lag_seconds", "remaining", "audit_check", "account", "vus",
          "dropped_iterations")


def class_of(milliseconds):
    """The class of a latency: its middle is within 1 % of the latency. The first class is 10 microseconds."""
    return max(0, round(math.log(max(milliseconds, 0.01) / 0.01, GROWTH)))


def middle(latency_class):
    return 0.01 * GROWTH**latency_class


def percentile(classes, share):
    """The latency below which a `share` of the counts in `classes` lies."""
    left = share * sum(classes.values())
    for latency_class in sorted(classes):
        left -= classes[latency_class]
        if left <= 0:
            return middle(latency_class)
    return None


class Counts(defaultdict):
    def __init__(self):
        super().__init__(int)


class Timeline:
    """Counts per moment and in total."""

    def __init__(self):
        self.width = MIN_WIDTH
        self.origin = None
        self.outcomes = defaultdict(Counts)  # moment -> outcome -> answers
        self.latencies = defaultdict(Counts)  # moment -> class -> answers
        self.dropped = Counts()  # moment -> iterations
        self.all = Counts()  # class -> answers
        self.operations = {}  # op -> (classes, outcomes)
        self.phases = {}  # name -> [first, last]
        self.series = defaultdict(list)  # (metric, what, total) -> [[seconds, value]]
        self.checks, self.accounts = {}, {}
        self._seconds = {}

    def add(self, line):
        # {"metric":"name","type":"Point","data":{"time":...,"value":...,"tags":{...}}}
        name = line[11 : line.find('"', 11)]
        if name not in WANTED or '"type":"Point"' not in line:
            return
        data = json.loads(line)["data"]
        tags, value = data.get("tags") or {}, data["value"]
        at = self.time(data["time"])
        if name == "api_latency":
            self.answer(at, value, tags)
        elif name == "dropped_iterations":
            self.dropped[self.moment(at)] += int(value)
        elif name == "audit_check":
            self.checks[tags["check"]] = {"name": tags["check"], "ok": value == 1, "detail": tags.get("detail", "")}
        elif name == "account":
            key = (tags["kind"], tags["name"])
            self.accounts.setdefault(key, {"kind": key[0], "name": key[1]})[tags["entry"]] = value
        elif name == "remaining":
            self.series[name, f"{tags['item']}, {tags['kind']}", tags["total"]].append([at, value])
        else:
            self.series[name, "", ""].append([at, value])

    def time(self, text):
        """Seconds since the first sample."""
        whole, rest = text[:19], text[19:]
        digits = re.match(r"\.(\d+)", rest)
        zone = rest[digits.end() :] if digits else rest
        key = whole + zone
        if key not in self._seconds:
            moment = datetime.datetime.fromisoformat(whole + ("+00:00" if zone == "Z" else zone))
            self._seconds = {key: moment.timestamp(), **({} if len(self._seconds) > 100 else self._seconds)}
        seconds = self._seconds[key] + (float(f"0.{digits[1]}") if digits else 0)
        if self.origin is None:
            self.origin = seconds
        return seconds - self.origin

    def moment(self, at):
        return int(at // self.width)

    def answer(self, at, milliseconds, tags):
        moment, latency_class = self.moment(at), class_of(milliseconds)
        operation, outcome = tags.get("op", "?"), tags.get("outcome", "?")
        self.outcomes[moment][outcome] += 1
        self.latencies[moment][latency_class] += 1
        self.all[latency_class] += 1
        classes, outcomes = self.operations.setdefault(operation, (Counts(), Counts()))
        classes[latency_class] += 1
        outcomes[outcome] += 1
        phase = tags.get("phase")
        if phase:
            first, last = self.phases.get(phase, (at, at))
            self.phases[phase] = (min(first, at), max(last, at))
        if len(self.outcomes) > MAX_MOMENTS:
            self.widen()

    def widen(self):
        """Doubles the width of a moment."""
        self.width *= 2
        for name in ("outcomes", "latencies"):
            merged = defaultdict(Counts)
            for moment, counts in getattr(self, name).items():
                for key, count in counts.items():
                    merged[moment // 2][key] += count
            setattr(self, name, merged)
        merged = Counts()
        for moment, count in self.dropped.items():
            merged[moment // 2] += count
        self.dropped = merged

    def json(self):
        """The data of the page, from the first answer to the last."""
        moments = [moment for moment in self.outcomes]
        first, last = (min(moments), max(moments)) if moments else (0, 0)
        while last - first + 1 > 150:
            self.widen()
            moments = list(self.outcomes)
            first, last = min(moments), max(moments)
        start = first * self.width
        every = range(first, last + 1)
        names = sorted({name for counts in self.outcomes.values() for name in counts})
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

        return {
            "startedAt": datetime.datetime.fromtimestamp((self.origin or 0) + start, datetime.timezone.utc).isoformat(),
            "width": self.width,
            "moments": len(every),
            "outcomes": {name: [self.outcomes[at][name] for at in every] for name in names},
            "latency": {
                name: [rounded(percentile(self.latencies[at], share)) for at in every]
                for name, share in shares.items()
            },
            "dropped": [self.dropped[at] for at in every],
            "histogram": histogram(self.all),
            "operations": [
                {
                    "op": op,
                    "count": sum(classes.values()),
                    **{name: rounded(percentile(classes, share)) for name, share in shares.items()},
                    "max": rounded(middle(max(classes))),
                    "outcomes": dict(outcomes),
                }
                for op, (classes, outcomes) in sorted(self.operations.items())
            ],
            "phases": [
                {"name": name, "from": max(0, begin - start), "to": end - start}
                for name, (begin, end) in sorted(self.phases.items(), key=lambda phase: phase[1])
            ],
            "series": [
                {
                    "metric": metric,
                    "what": what,
                    "total": float(total) if total else None,
                    "points": thinned([[round(at - start, 3), value] for at, value in points]),
                }
                for (metric, what, total), points in self.series.items()
            ],
            "checks": list(self.checks.values()),
            "accounts": list(self.accounts.values()),
        }


def rounded(value):
    return None if value is None else float(f"{value:.3g}")


def thinned(points, limit=600):
    """At most `limit` of the points, with the first and the last."""
    if len(points) <= limit:
        return points
    step = (len(points) - 1) / (limit - 1)
    return [points[round(index * step)] for index in range(limit)]


def histogram(classes, bars=36):
    """Bars of equal width on a logarithmic axis."""
    if not classes:
        return []
    low, high = min(classes), max(classes)
    step = max(1, math.ceil((high - low + 1) / bars))
    return [
        {
            "from": rounded(0.01 * GROWTH ** (at - 0.5)),
            "to": rounded(0.01 * GROWTH ** (at + step - 0.5)),
            "count": sum(classes.get(one, 0) for one in range(at, at + step)),
        }
        for at in range(low, high + 1, step)
    ]


def collect(samples, out):
    timeline = Timeline()
    with open(samples, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                timeline.add(line)
            except (ValueError, KeyError) as error:
                print(f"report: cannot parse a sample ({error}): {line[:200]!r}", file=sys.stderr)
    Path(out).write_text(json.dumps(timeline.json()), encoding="utf-8")


# --- the machine -------------------------------------------------------------------------------


def first_line(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.splitlines()[0].strip()
    except (OSError, IndexError, subprocess.SubprocessError):
        return ""


def machine(service, k6, target):
    """The machine that the numbers were measured on."""

    def grep(path, pattern):
        try:
            found = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        except OSError:
            return ""
        return found[1] if found else ""

    processor = grep("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.processor() or platform.machine()
    memory = grep("/proc/meminfo", r"^MemTotal:\s+(\d+) kB$")
    system = grep("/etc/os-release", r'^PRETTY_NAME="?([^"\n]+)') or platform.system()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    facts = {
        "Target": re.sub(r"//[^/@]*@", "//", target),
        "Service": first_line(service, "--version") if service else "",
        "Load generator": first_line(k6, "version") if k6 else "",
        "Processors": f"{os.cpu_count()} × {processor}",
        "Memory": f"{int(memory) / 2**20:.1f} GiB" if memory else "",
        "System": f"{system}, {platform.system()} {platform.release()}",
        "Load average at the end": f"{load:.1f}" if load is not None else "",
    }
    return {name: fact for name, fact in facts.items() if fact}


# --- writing -----------------------------------------------------------------------------------


def page(result):
    """report.html with the result inserted. No text of the result can close its element or open another."""
    data = json.dumps(result, ensure_ascii=True)
    for char in "<>&":
        data = data.replace(char, f"\\u{ord(char):04x}")
    template = (HERE / "report.html").read_text(encoding="utf-8")
    assert template.count("/*RESULT*/null") == 1
    return template.replace("/*RESULT*/null", data)


def write(options):
    result = json.loads(Path(options.summary).read_text(encoding="utf-8"))
    result["timeline"] = json.loads(Path(options.timeline).read_text(encoding="utf-8"))
    result["machine"] = machine(options.service, options.k6, options.target)
    if options.interrupted:
        result["interrupted"], result["passed"] = True, False
    out = Path(options.out)
    out.with_name(out.name + ".json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    out.with_name(out.name + ".html").write_text(page(result), encoding="utf-8")
    # `passed` includes the comparisons, which k6's own thresholds lack.
    return 0 if result["passed"] else 1


class Outline(html.parser.HTMLParser):
    """Finds external references and unclosed elements of a page."""

    EMPTY = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.problems = [], []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action") and not (value or "").startswith(("#", "data:")):
                self.problems.append(f"<{tag} {name}={value}> refers outside the page")
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes what is not open")


def check():
    """Runs a result of hostile texts through the timeline and the page."""
    hostile = "</script><script>alert(1)</script>&<!-- \u2028 \"'"
    timeline = Timeline()
    for at in range(4000):
        seconds = f"2026-01-01T{at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}.5Z"
        tags = {"op": hostile if at % 7 == 0 else "GET product", "outcome": hostile if at % 11 == 0 else "OK", "phase": hostile}
        data = {"time": seconds, "value": 1 + at % 100, "tags": tags}
        timeline.add(json.dumps({"metric": "api_latency", "type": "Point", "data": data}, separators=(",", ":")))
    found = timeline.json()
    counted = sum(sum(values) for values in found["outcomes"].values())
    assert counted == 4000 == sum(bar["count"] for bar in found["histogram"]), counted
    assert found["moments"] <= 150 and abs(percentile(timeline.all, 0.5) - 50) < 1.5, found["width"]
    rule = {"kind": "correctness", "metric": hostile, "condition": hostile, "description": hostile, "actual": 0, "ok": False}
    filled = page({
        "scenario": hostile, "title": hostile, "proves": hostile, "passed": False, "seconds": 1.0, "metrics": {},
        "headline": [{"value": hostile, "label": hostile, "ok": False}], "rules": [rule], "options": {hostile: hostile},
        "timeline": found, "machine": {hostile: hostile}, "kind": hostile, "when": hostile, "footer": hostile,
        "tables": [{"title": hostile, "note": hostile, "columns": [hostile], "rows": [[hostile]]}],
    })
    outline = Outline()
    outline.feed(filled)
    outline.close()
    problems = outline.problems + [f"<{tag}> is not closed" for tag in outline.open]
    if re.search(r"https?://(?!www\.w3\.org/)", filled):
        problems.append("a URL in the page")
    if "alert(1)</script" in filled or re.search(r"innerHTML|insertAdjacentHTML|document\.write", filled):
        problems.append("text may become markup")
    for problem in problems:
        print(f"report: {problem}", file=sys.stderr)
    return 1 if problems else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("collect")
    one.add_argument("samples")
    one.add_argument("timeline")
    one = commands.add_parser("write")
    for name in ("--summary", "--timeline"):
        one.add_argument(name, required=True)
    for name in ("--service", "--k6", "--target"):
        one.add_argument(name, default="")
    one.add_argument("--interrupted", action="store_true")
    one.add_argument("out")
    one = commands.add_parser("render")
    one.add_argument("result")
    commands.add_parser("check")
    options = parser.parse_args()
    if options.command == "collect":
        collect(options.samples, options.timeline)
    elif options.command == "write":
        return write(options)
    elif options.command == "render":
        print(page(json.loads(Path(options.result).read_text(encoding="utf-8"))))
    else:
        return check()
    return 0


if __name__ == "__main__":
    sys.exit(main())

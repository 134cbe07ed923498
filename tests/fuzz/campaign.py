"""Random calls for as long as one likes: ``python -m tests.fuzz.campaign --minutes 60``.

Runs hypothesis in rounds with new seeds. What is found is reduced to the smallest case that shows
it, printed with the lines that repeat it, and passed over from then on. Exits 1 if anything was.
"""

import argparse
import collections
import dataclasses
import logging
import signal
import time

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.calls import ORACLES, Case, Finding, cases, check, has_oracle
from tests.fuzz.methods import methods
from tests.fuzz.mistakes import check_mistake, mistakes, sound_case

ROUND = 40
"""Examples of one method and oracle in one round."""

Key = tuple[str, str, str]


@dataclasses.dataclass
class Report:
    """What a campaign did so far."""

    cases: collections.Counter[tuple[str, str]] = dataclasses.field(
        default_factory=collections.Counter
    )
    refusals: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    findings: dict[Key, Finding] = dataclasses.field(default_factory=dict)
    repeats: collections.Counter[Key] = dataclasses.field(default_factory=collections.Counter)

    def run(self, case: Case) -> None:
        """Judge a case; raise what is new."""
        self.cases[case.method, case.oracle] += 1
        try:
            refused = check(case)
        except Finding as finding:
            if finding.key in self.findings:
                self.repeats[finding.key] += 1
                return
            raise
        if refused is not None:
            self.refusals[refused.kind] += 1

    def keep(self, finding: Finding, case: Case, how: str) -> None:
        """Note a finding and print how to repeat it."""
        self.findings[finding.key] = finding
        print(f"FINDING {' | '.join(finding.key)}\n  {finding}\n  {how}", flush=True)

    def summary(self, minutes: float) -> str:
        """Return the figures as text."""
        total, refused = self.cases.total(), self.refusals.total()
        lines = [
            f"{total:,} cases in {minutes:.1f} min, {refused:,} refusals, "
            f"{len(self.findings)} findings (seen {self.repeats.total():,} times more)"
        ]
        by_method: collections.Counter[str] = collections.Counter()
        by_oracle: collections.Counter[str] = collections.Counter()
        for (method, oracle), count in self.cases.items():
            by_method[method] += count
            by_oracle[oracle] += count
        for title, counts in (("method", by_method), ("oracle", by_oracle)):
            lines.append(f"cases by {title}:")
            lines += [f"  {count:8,}  {name}" for name, count in sorted(counts.items())]
        lines.append("refusals by message:")
        lines += [f"  {count:8,}  {kind}" for kind, count in self.refusals.most_common()]
        lines.append("findings:" if self.findings else "findings: none")
        lines += [f"  {' | '.join(key)}: {found}" for key, found in self.findings.items()]
        return "\n".join(lines)


def one_round(report: Report, method: str, oracle: str, number: int) -> None:
    """Run some examples; a new finding is reduced, noted, and ends the round."""
    last: list[Finding] = []

    @seed(number)
    @settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        derandomize=False,
        report_multiple_bugs=False,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(method, oracle))
    def attempt(case: Case) -> None:
        try:
            report.run(case)
        except Finding as finding:
            if last and last[-1].key != finding.key:
                return  # while one kind is reduced, another waits
            last.append(finding)
            raise

    try:
        attempt()
    except Finding as finding:  # hypothesis ends with the smallest one
        repeat = "from tests.fuzz.calls import Case, check"
        report.keep(finding, finding.case, f"{repeat}; check({finding.case!r})")


def all_mistakes(report: Report) -> None:
    """Make every wrong call of every method once."""
    for method in methods():
        case = sound_case(method)
        for what, call in mistakes(case).items():
            report.cases[method, "mistakes"] += 1
            try:
                report.refusals[check_mistake(case, what, call).kind] += 1
            except Finding as finding:
                finding.key = (method, what, finding.key[2])
                how = f"tests.fuzz.mistakes: mistakes(sound_case({method!r}))[{what!r}]()"
                report.keep(finding, case, how)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run until the minutes are over and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--method", action="append", help="default: all")
    options = parser.parse_args()
    logging.getLogger("upfeat").setLevel(logging.ERROR)
    report, start, number = Report(), time.monotonic(), options.seed
    pairs = [(m, o) for m in options.method or methods() for o in ORACLES if has_oracle(m, o)]
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, _interrupt)
    try:
        if not options.method:
            all_mistakes(report)
        while time.monotonic() - start < 60 * options.minutes:
            method, oracle = pairs[number % len(pairs)]
            one_round(report, method, oracle, number)
            number += 1
    except KeyboardInterrupt:
        print("interrupted")
    minutes = (time.monotonic() - start) / 60
    print(report.summary(minutes))
    print(f"seeds {options.seed} to {number - 1}")
    return 1 if report.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())

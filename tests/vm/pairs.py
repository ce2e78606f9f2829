# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairwise covering sets: few rows, and any two values of different factors that may meet do so in one of them."""
import itertools
import random


def pairs(row):
    """{factor: value} as the set of its pairs, each a frozenset of two (factor, value)."""
    return [frozenset(pair) for pair in itertools.combinations(row.items(), 2)]


class Factors:
    """values: {factor: (value, ...)}. forbidden: ((factor, value), (factor, value)) that must not meet. Each factor has a
    value that is forbidden nowhere, so that any legal pair can be completed to a row."""

    def __init__(self, values, forbidden):
        self.values = values
        self.forbidden = {frozenset(pair) for pair in forbidden}
        barred = set().union(*self.forbidden)
        for name in values:
            assert any((name, v) not in barred for v in values[name]), name + ": every value is forbidden somewhere"

    def legal_pairs(self):
        """In a stable order."""
        for (a, some), (b, others) in itertools.combinations(self.values.items(), 2):
            for v, w in itertools.product(some, others):
                pair = frozenset(((a, v), (b, w)))
                if pair not in self.forbidden:
                    yield pair

    def legal(self, row):
        return self.forbidden.isdisjoint(pairs(row))

    def uncovered(self, rows):
        """The legal pairs that no row has."""
        seen = set().union(*map(pairs, rows))
        return [sorted(pair) for pair in self.legal_pairs() if pair not in seen]

    def covering_set(self):
        """Rows {factor: value}, the same for the same factors. Greedy: a row starts from the first missing pair and
        takes, factor by factor, the value that adds most; of two orders of factors the better one is kept."""
        missing = dict.fromkeys(self.legal_pairs())
        rows = []
        while missing:
            seed = dict(sorted(next(iter(missing))))
            best = max((self.complete(seed, missing, len(rows) + i) for i in range(2)),
                       key=lambda row: sum(pair in missing for pair in pairs(row)))
            rows.append({name: best[name] for name in self.values})
            for pair in pairs(best):
                missing.pop(pair, None)
        return rows

    def complete(self, seed, missing, turn):
        row = dict(seed)
        for name in rotated([n for n in self.values if n not in row], turn):
            legal = [v for v in shuffled(self.values[name], name, turn) if self.legal({**row, name: v})]
            row[name] = max(legal, key=lambda v: sum(frozenset(((name, v), item)) in missing for item in row.items()))
        return row


def shuffled(values, name, turn):
    """By another order each turn, which has nothing to do with that of other factors: where all values are as good, factors of as
    many values would go hand in hand otherwise."""
    return random.Random("%s %d" % (name, turn)).sample(values, len(values))


def rotated(values, by):
    by %= len(values)
    return values[by:] + values[:by]

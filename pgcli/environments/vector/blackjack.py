"""Blackjack in numpy, with an endless deck.

Source: Gymnasium, `toy_text/blackjack.py`; Sutton and Barto (2018), example 5.1.
"""

from __future__ import annotations

import numpy as np

from pgcli.environments.vector.form import Array, Form
from pgcli.environments.vector.streams import Streams

_DECK = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10])
_PLAYER, _DEALER, _SHOWN = slice(0, 3), slice(3, 6), 6


class Blackjack(Form):
    """The state is three numbers of each hand, then the card that the dealer shows.

    A hand is its sum with aces as 1, whether it has an ace, and its number of cards.
    """

    dtype, draws, narrow, is_random = np.int64, 8, True, True

    def reset(self, random: Streams) -> Array:
        """Deal two cards to each; the suit and the face of the shown card are drawn for pictures only."""
        cards = np.array([_DECK[random.choice(len(_DECK))] for _ in range(4)])
        random.choice(4)
        random.choice(3, (cards[0] == 10).nonzero()[0])
        dealer, player = cards[:2], cards[2:]
        hands = [(hand.sum(0), (hand == 1).any(0), np.full(hand.shape[1], 2)) for hand in (player, dealer)]
        return np.array([*hands[0], *hands[1], dealer[0]])

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Deal one card, or play the dealer's hand and compare."""
        state, hit = state.copy(), actions == 1
        player, dealer = state[_PLAYER], state[_DEALER]
        _deal(player, hit.nonzero()[0], random)
        while len(columns := (~hit & (_value(dealer) < 17)).nonzero()[0]):
            _deal(dealer, columns, random)
        own, other = (np.where(hand[0] > 21, 0, _value(hand)) for hand in (player, dealer))
        rewards = np.sign(own - other).astype(np.float64)
        natural = _is_natural(player)
        if self._env.sab:
            rewards[natural & ~_is_natural(dealer)] = 1.0
        elif self._env.natural:
            rewards[natural & (rewards == 1)] = 1.5
        bust = player[0] > 21
        return state, np.where(hit, np.where(bust, -1.0, 0.0), rewards), ~hit | bust

    def observe(self, state: Array) -> Array:
        """Return the player's value, the dealer's shown card and whether an ace counts as 11, as bytes."""
        player = state[_PLAYER]
        value = _value(player)
        return np.array([value, state[_SHOWN], value != player[0]], np.uint8).T.copy()


def _deal(hand: Array, columns: Array, random: Streams) -> None:
    """Add a card to a hand in some columns."""
    card, (total, has_ace, count) = _DECK[random.choice(len(_DECK), columns)], hand
    total[columns] += card
    has_ace[columns] |= card == 1
    count[columns] += 1


def _value(hand: Array) -> Array:
    """Return the sum of a hand, with one ace as 11 if that is at most 21."""
    value: Array = hand[0] + 10 * ((hand[1] == 1) & (hand[0] <= 11))
    return value


def _is_natural(hand: Array) -> Array:
    """Return whether a hand is an ace and a ten."""
    natural: Array = (hand[2] == 2) & (hand[1] == 1) & (hand[0] == 11)
    return natural

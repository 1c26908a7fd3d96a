"""Blackjack in numpy, with an endless deck.

Source: Gymnasium, `toy_text/blackjack.py`; Sutton and Barto (2018), example 5.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pgcli.environments.vector.form import Array, Form
from pgcli.environments.vector.streams import Streams
from pgcli.policies.observations import Layout

_DECK = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10])
# A hand is a number: 4 times its sum with aces as 1, 2 more with an ace, 1 more with more than two cards.
_SUM, _ACE, _MORE = (x.ravel() for x in np.indices((32, 2, 2)))
_VALUE = _SUM + 10 * ((_ACE == 1) & (_SUM <= 11))  # with one ace as 11 if that is at most 21
_SCORE = np.where(_SUM > 21, 0, _VALUE)
_IS_NATURAL = (_SUM == 11) & (_ACE == 1) & (_MORE == 0)  # an ace and a ten
_NEXT = (np.minimum(np.add.outer(_SUM, _DECK), 31) * 4 + (np.logical_or.outer(_ACE, _DECK == 1) * 2) + 1).ravel()
_DRAWS = _VALUE < 17  # whether the dealer draws a card


class Blackjack(Form):
    """The state is the player's hand, the dealer's hand, and the card that the dealer shows."""

    dtype, draws, narrow, is_random = np.int64, 8, True, True

    def __init__(self, env: Any, layout: Layout) -> None:
        """Compute the rewards of two hands, and the observations."""
        rewards = np.sign(np.subtract.outer(_SCORE, _SCORE)).astype(np.float64)
        if env.sab:
            rewards[np.logical_and.outer(_IS_NATURAL, ~_IS_NATURAL)] = 1.0
        elif env.natural:
            rewards[_IS_NATURAL[:, None] & (rewards == 1)] = 1.5
        self._rewards = rewards.ravel()
        self._obs = np.array([(v, 0, v != total) for v, total in zip(_VALUE, _SUM, strict=True)], np.uint8)

    def reset(self, random: Streams) -> Array:
        """Deal two cards to each; the suit and the face of the shown card are drawn for pictures only."""
        cards = np.array([_DECK[random.choice(len(_DECK))] for _ in range(4)])
        random.choice(4)
        random.choice(3, (cards[0] == 10).nonzero()[0])
        dealer, player = (4 * hand.sum(0) + 2 * (hand == 1).any(0) for hand in (cards[:2], cards[2:]))
        return np.array([player, dealer, cards[0]])

    def step(self, state: Array, actions: Array, random: Streams) -> tuple[Array, Array, Array]:
        """Deal one card, or play the dealer's hand and compare."""
        state, hit = state.copy(), actions == 1
        player, dealer = state[:2]
        if len(columns := hit.nonzero()[0]):
            player[columns] = _with_card(player[columns], columns, random)
        columns = (~hit & _DRAWS.take(dealer)).nonzero()[0]
        while len(columns):
            dealer[columns] = hands = _with_card(dealer[columns], columns, random)
            columns = columns[_DRAWS.take(hands)]
        bust = _SUM.take(player) > 21
        rewards = np.where(hit, np.where(bust, -1.0, 0.0), self._rewards.take(player * len(_SUM) + dealer))
        return state, rewards, ~hit | bust

    def observe(self, state: Array) -> Array:
        """Return the player's value, the dealer's shown card and whether an ace counts as 11, as bytes."""
        obs: Array = self._obs.take(state[0], 0)
        obs[:, 1] = state[2]
        return obs


def _with_card(hands: Array, columns: Array, random: Streams) -> Array:
    """Return the hands of some columns with one more card."""
    added: Array = _NEXT.take(hands * len(_DECK) + random.choice(len(_DECK), columns))
    return added

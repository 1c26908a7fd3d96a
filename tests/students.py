"""Right and wrong functions of students, with the verdict and reasons of `pgcli check`."""

from __future__ import annotations

from typing import Any

from pgcli.inspection.gradient_check.user_estimators import check_loaded

STUDENT = '''
import numpy as np
import torch


def scores_of(roll, policy):
    return torch.stack([policy.grad_log(s, a) for s, a, _ in roll])


def rewards_of(roll):
    return torch.tensor([r for _, _, r in roll])


def discounts(roll, gamma):
    return gamma ** torch.arange(len(roll)).float()


def ahead(x):
    return x.flip(0).cumsum(0).flip(0)


def gpomdp(rollouts, policy, gamma):
    """The tutorial's, with its TODO filled in."""
    grad = 0
    for roll in rollouts:
        H = len(roll)
        disc_rew = torch.zeros((H, 1))
        scores = torch.zeros((H, policy.dim))
        for t in range(H):
            s, a, r = roll[t]
            disc_rew[t] = gamma**t * r
            scores[t] = policy.grad_log(s, a)
        cum_scores = torch.cumsum(scores, dim=0)
        grad += (cum_scores * disc_rew).sum(0)
    return grad / len(rollouts)


def weighed(rollouts, policy, gamma, weights):
    return sum(weights(roll) @ scores_of(roll, policy) for roll in rollouts) / len(rollouts)


def R(roll, gamma):
    return (discounts(roll, gamma) * rewards_of(roll)).sum()


def G(roll, gamma):
    return ahead(discounts(roll, gamma) * rewards_of(roll)) / discounts(roll, gamma)


def total(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: R(roll, gamma) * torch.ones(len(roll)))


def to_go(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: discounts(roll, gamma) * G(roll, gamma))


def leave_one_out(rollouts, policy, gamma):
    rs, n = [R(roll, gamma) for roll in rollouts], len(rollouts)
    return sum((r - (sum(rs) - r) / (n - 1)) * scores_of(roll, policy).sum(0) for r, roll in zip(rs, rollouts)) / n


def in_numpy(rollouts, policy, gamma):
    return to_go(rollouts, policy, gamma).numpy()


def no_gamma_t(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: G(roll, gamma))


def mean_baseline(rollouts, policy, gamma):
    b = sum(R(roll, gamma) for roll in rollouts) / len(rollouts)
    return weighed(rollouts, policy, gamma, lambda roll: (R(roll, gamma) - b) * torch.ones(len(roll)))


def mean_over_steps(rollouts, policy, gamma):
    return to_go(rollouts, policy, gamma) * len(rollouts) / sum(len(roll) for roll in rollouts)


def standardised(rollouts, policy, gamma):
    r = torch.stack([R(roll, gamma) for roll in rollouts])
    a = (r - r.mean()) / (r.std(unbiased=False) + 1e-8)
    return sum(x * scores_of(roll, policy).sum(0) for x, roll in zip(a, rollouts)) / len(rollouts)


def all_steps_standardised_without_gamma_t(rollouts, policy, gamma):
    g = torch.cat([G(roll, gamma) for roll in rollouts])
    g = (g - g.mean()) / (g.std() + 1e-8)
    return g @ torch.cat([scores_of(roll, policy) for roll in rollouts]) / len(rollouts)


def immediate(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: discounts(roll, gamma) * rewards_of(roll))


def past(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: (discounts(roll, gamma) * rewards_of(roll)).cumsum(0))


def undiscounted(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: ahead(rewards_of(roll)))


def twice(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: discounts(roll, gamma) * R(roll, gamma))


def downhill(rollouts, policy, gamma):
    return -total(rollouts, policy, gamma)


def downhill_without_gamma_t(rollouts, policy, gamma):
    return -no_gamma_t(rollouts, policy, gamma)


def not_divided(rollouts, policy, gamma):
    return len(rollouts) * to_go(rollouts, policy, gamma)


def half(rollouts, policy, gamma):
    return to_go(rollouts, policy, gamma) / 2


def squared_score_added(rollouts, policy, gamma):
    return total(rollouts, policy, gamma) + policy.grad_log(*rollouts[0][0][:2]) ** 2


def over_parameters(rollouts, policy, gamma):
    grad = 0
    for roll in rollouts:
        cum_scores = torch.sum(scores_of(roll, policy), dim=-1)
        grad += (cum_scores * R(roll, gamma)).sum()
    return grad / len(rollouts)


def over_parameters_by_step(rollouts, policy, gamma):
    grad = 0
    for roll in rollouts:
        cum_scores = torch.sum(scores_of(roll, policy), dim=-1)
        grad += cum_scores * (discounts(roll, gamma) * rewards_of(roll)).sum()
    return grad / len(rollouts)


def a_row(rollouts, policy, gamma):
    return to_go(rollouts, policy, gamma)[None]


def no_return(rollouts, policy, gamma):
    to_go(rollouts, policy, gamma)


def not_a_number(rollouts, policy, gamma):
    r = torch.stack([R(roll, gamma) for roll in rollouts])
    a = (r - r.mean()) / r.std()
    return sum(x * scores_of(roll, policy).sum(0) for x, roll in zip(a, rollouts)) / len(rollouts)


def greedy_hands(rollouts, policy, gamma):
    result = to_go(rollouts, policy, gamma)
    rollouts.pop()
    return result


def steps_itself(rollouts, policy, gamma):
    result = to_go(rollouts, policy, gamma)
    policy.set_parameters(policy.get_parameters() + 0.1 * result)
    return result


def raises(rollouts, policy, gamma):
    return rollouts[7000]


def random(rollouts, policy, gamma):
    return torch.randn(policy.dim)


def relu(rollouts, policy, gamma):
    W1, b1, W2, b2 = torch.split(policy.get_parameters(), [9, 3, 6, 2])
    W1, W2 = W1.view(3, 3), W2.view(2, 3)
    grad = 0
    for roll in rollouts:
        for s, a, r in roll:
            s = torch.as_tensor(s)
            z = W1 @ s + b1
            delta = torch.eye(2)[a] - torch.softmax(W2 @ z + b2, 0)
            back = W2.T @ delta * (z > 0)
            parts = torch.outer(back, s).view(-1), back, torch.outer(delta, z.relu()).view(-1), delta
            grad += torch.cat(parts) * R(roll, gamma)
    return grad / len(rollouts)


def zero(rollouts, policy, gamma):
    return torch.zeros(policy.dim)


def score_only(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: torch.ones(len(roll)))


def score_only_steps(rollouts, policy, gamma):
    return (
        weighed(rollouts, policy, gamma, lambda roll: torch.ones(len(roll))) * len(rollouts) / sum(map(len, rollouts))
    )


def rtg_minus_batch_mean(rollouts, policy, gamma):
    b = sum(R(roll, gamma) for roll in rollouts) / len(rollouts)
    return weighed(rollouts, policy, gamma, lambda roll: G(roll, gamma) - b)


def rtg_minus_batch_mean_gt(rollouts, policy, gamma):
    b = torch.cat([G(roll, gamma) for roll in rollouts]).mean()
    return weighed(rollouts, policy, gamma, lambda roll: discounts(roll, gamma) * (G(roll, gamma) - b))


def rtg_minus_batch_mean_all(rollouts, policy, gamma):
    b = torch.cat([G(roll, gamma) for roll in rollouts]).mean()
    return weighed(rollouts, policy, gamma, lambda roll: G(roll, gamma) - b)


def rtg_minus_mean_R_undisc(rollouts, policy, gamma):
    b = sum(rewards_of(roll).sum() for roll in rollouts) / len(rollouts)
    return weighed(rollouts, policy, gamma, lambda roll: discounts(roll, gamma) * G(roll, gamma) - b)


def g_next(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: torch.cat([G(roll, gamma)[1:], torch.zeros(1)]))


def g_next2(rollouts, policy, gamma):
    return weighed(
        rollouts, policy, gamma, lambda roll: discounts(roll, gamma) * torch.cat([G(roll, gamma)[1:], torch.zeros(1)])
    )


def g_next3(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: discounts(roll, gamma) * (G(roll, gamma) - rewards_of(roll)))


def last_dropped(rollouts, policy, gamma):
    g = torch.zeros(policy.dim)
    for roll in rollouts:
        if len(roll) > 1:
            g = g + (discounts(roll[:-1], gamma) * G(roll[:-1], gamma)) @ scores_of(roll[:-1], policy)
    return g / len(rollouts)


def last_dropped2(rollouts, policy, gamma):
    def w(roll):
        x = discounts(roll, gamma) * G(roll, gamma)
        x[-1] = 0
        return x

    return weighed(rollouts, policy, gamma, w)


def last_dropped3(rollouts, policy, gamma):
    g = 0
    for roll in rollouts:
        for t in range(len(roll) - 1):
            g = g + R(roll, gamma) * policy.grad_log(*roll[t][:2])
    return g / len(rollouts) + torch.zeros(policy.dim)


def gamma99(rollouts, policy, gamma):
    return total(rollouts, policy, 0.99)


def gamma9_to_go(rollouts, policy, gamma):
    return no_gamma_t(rollouts, policy, 0.9)


def gamma95_baseline(rollouts, policy, gamma):
    return mean_baseline(rollouts, policy, 0.95)


def gamma_mixed(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: discounts(roll, gamma) * G(roll, 0.99))


def clipped(rollouts, policy, gamma):
    return total([[(s, a, float(np.clip(r, -1, 1))) for s, a, r in roll] for roll in rollouts], policy, gamma)


def clipped01(rollouts, policy, gamma):
    return no_gamma_t([[(s, a, float(np.clip(r, 0, 1))) for s, a, r in roll] for roll in rollouts], policy, gamma)


def signed(rollouts, policy, gamma):
    return mean_baseline([[(s, a, float(np.sign(r))) for s, a, r in roll] for roll in rollouts], policy, gamma)


def squared(rollouts, policy, gamma):
    return to_go([[(s, a, r * r) for s, a, r in roll] for roll in rollouts], policy, gamma)


def squared_return(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: R(roll, gamma) ** 2 * torch.ones(len(roll)))


def clipped_return(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: G(roll, gamma).clip(-1, 1))


def shifted(rollouts, policy, gamma):
    return to_go([[(s, a, r - 1) for s, a, r in roll] for roll in rollouts], policy, gamma)


def scaled(rollouts, policy, gamma):
    return to_go([[(s, a, r / 10) for s, a, r in roll] for roll in rollouts], policy, gamma)


def abs_r(rollouts, policy, gamma):
    return to_go([[(s, a, abs(r)) for s, a, r in roll] for roll in rollouts], policy, gamma)


def sqrt_r(rollouts, policy, gamma):
    return to_go([[(s, a, abs(r) ** 0.5) for s, a, r in roll] for roll in rollouts], policy, gamma)


def action_baseline(rollouts, policy, gamma):
    return weighed(
        rollouts,
        policy,
        gamma,
        lambda roll: discounts(roll, gamma) * G(roll, gamma) - torch.tensor([float(a) for _, a, _ in roll]),
    )


def action_baseline2(rollouts, policy, gamma):
    gs = {0: [], 1: []}
    for roll in rollouts:
        for (s, a, r), g in zip(roll, G(roll, gamma)):
            gs[a].append(g)
    m = {k: sum(v) / len(v) if v else 0 for k, v in gs.items()}
    return weighed(
        rollouts, policy, gamma, lambda roll: G(roll, gamma) - torch.tensor([float(m[a]) for _, a, _ in roll])
    )


def action_baseline3(rollouts, policy, gamma):
    return weighed(
        rollouts,
        policy,
        gamma,
        lambda roll: G(roll, gamma) - torch.stack([policy.forward(s)[a] * 3 for s, a, _ in roll]),
    )


def q_baseline(rollouts, policy, gamma):
    return weighed(
        rollouts,
        policy,
        gamma,
        lambda roll: (
            discounts(roll, gamma)
            * (G(roll, gamma) - torch.stack([policy.forward(s).log()[a] * 0.5 for s, a, _ in roll]))
        ),
    )


def last_only(rollouts, policy, gamma):
    for roll in rollouts:
        g = R(roll, gamma) * scores_of(roll, policy).sum(0)
    return g


def last_only_div(rollouts, policy, gamma):
    for roll in rollouts:
        g = R(roll, gamma) * scores_of(roll, policy).sum(0)
    return g / len(rollouts)


def first_only(rollouts, policy, gamma):
    for roll in rollouts:
        return to_go([roll], policy, gamma)


def const5(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: R(roll, gamma) - 5 * torch.ones(len(roll)))


def const5_togo(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: discounts(roll, gamma) * (G(roll, gamma) - 5))


def const5_nog(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: G(roll, gamma) - 5)


def state_baseline(rollouts, policy, gamma):
    return weighed(
        rollouts, policy, gamma, lambda roll: G(roll, gamma) - torch.tensor([float(s[0] ** 2) for s, _, _ in roll])
    )


def no_log(rollouts, policy, gamma):
    return sum(
        R(roll, gamma) * sum(policy.forward(s)[a] * policy.grad_log(s, a) for s, a, _ in roll) for roll in rollouts
    ) / len(rollouts)


def n_minus_1(rollouts, policy, gamma):
    return total(rollouts, policy, gamma) * len(rollouts) / (len(rollouts) - 1)


def by_H(rollouts, policy, gamma):
    return total(rollouts, policy, gamma) * len(rollouts) / len(rollouts[-1])


def by_100(rollouts, policy, gamma):
    return total(rollouts, policy, gamma) * len(rollouts) / 100


def by_each_H(rollouts, policy, gamma):
    return sum(R(roll, gamma) * scores_of(roll, policy).mean(0) for roll in rollouts) / len(rollouts)


def by_each_H_no_N(rollouts, policy, gamma):
    return sum(R(roll, gamma) * scores_of(roll, policy).mean(0) for roll in rollouts)


def by_N_H(rollouts, policy, gamma):
    return total(rollouts, policy, gamma) / max(map(len, rollouts))


def reverse_discount(rollouts, policy, gamma):
    def w(roll):
        g = 0.0
        for _, _, r in roll:
            g = r + gamma * g
        return g * torch.ones(len(roll))

    return weighed(rollouts, policy, gamma, w)


def forward_G(rollouts, policy, gamma):
    def w(roll):
        g = 0.0
        out = []
        for _, _, r in roll:
            g = r + gamma * g
            out.append(g)
        return torch.tensor(out)

    return weighed(rollouts, policy, gamma, w)


def carried(rollouts, policy, gamma):
    g = 0.0
    grad = 0
    for roll in rollouts:
        for s, a, r in reversed(roll):
            g = r + gamma * g
            grad = grad + g * policy.grad_log(s, a)
    return grad / len(rollouts)


def carried_total(rollouts, policy, gamma):
    tot = 0.0
    grad = 0
    for roll in rollouts:
        tot += float(R(roll, gamma))
        grad = grad + tot * scores_of(roll, policy).sum(0)
    return grad / len(rollouts)


def mean_times_mean(rollouts, policy, gamma):
    return (
        sum(scores_of(r, policy).sum(0) for r in rollouts)
        / len(rollouts)
        * sum(R(r, gamma) for r in rollouts)
        / len(rollouts)
    )


def gamma_t1(rollouts, policy, gamma):
    return gamma * total(rollouts, policy, gamma)


def own_mean(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: G(roll, gamma) - G(roll, gamma).mean())


def within_std(rollouts, policy, gamma):
    return weighed(
        rollouts,
        policy,
        gamma,
        lambda roll: (G(roll, gamma) - G(roll, gamma).mean()) / (G(roll, gamma).std(unbiased=False) + 1e-8),
    )


def max_baseline(rollouts, policy, gamma):
    b = max(R(r, gamma) for r in rollouts)
    return weighed(rollouts, policy, gamma, lambda roll: (R(roll, gamma) - b) * torch.ones(len(roll)))


def positive(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: R(roll, gamma).clip(min=0) * torch.ones(len(roll)))


def normed(rollouts, policy, gamma):
    g = total(rollouts, policy, gamma)
    return g / (g.norm() + 1e-8)


def gradclip(rollouts, policy, gamma):
    g = total(rollouts, policy, gamma)
    return g * min(1.0, 0.5 / (float(g.norm()) + 1e-8))


def std_only(rollouts, policy, gamma):
    r = torch.stack([R(roll, gamma) for roll in rollouts])
    return total(rollouts, policy, gamma) / (r.std() + 1e-8)


def loo_nog(rollouts, policy, gamma):
    rs, n = [R(roll, gamma) for roll in rollouts], len(rollouts)
    return (
        sum(((G(roll, gamma) - (sum(rs) - r) / (n - 1)) @ scores_of(roll, policy)) for r, roll in zip(rs, rollouts))
        / n
    )


def entropy(rollouts, policy, gamma):
    g = 0
    for roll in rollouts:
        for s, a, _ in roll:
            p = policy.forward(s)
            H = -(p * p.log()).sum()
            g = g + 0.01 * sum(-p[b] * p[b].log() * policy.grad_log(s, b) for b in range(2))
    return no_gamma_t(rollouts, policy, gamma) + g / len(rollouts)


def last_reward(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: roll[-1][2] * torch.ones(len(roll)))


def mean_reward(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: rewards_of(roll).mean() * torch.ones(len(roll)))


def ema(rollouts, policy, gamma):
    b = 0.0
    g = 0
    for roll in rollouts:
        r = R(roll, gamma)
        g = g + (r - b) * scores_of(roll, policy).sum(0)
        b = 0.9 * b + 0.1 * float(r)
    return g / len(rollouts)


def sum_scores_twice(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: torch.arange(1, len(roll) + 1).float() * G(roll, gamma))


def wrong_action(rollouts, policy, gamma):
    return total([[(s, 1 - a, r) for s, a, r in roll] for roll in rollouts], policy, gamma)


def reverse_cumsum_scores(rollouts, policy, gamma):
    return sum(
        (
            (scores_of(roll, policy).flip(0).cumsum(0).flip(0)) * (discounts(roll, gamma) * rewards_of(roll))[:, None]
        ).sum(0)
        for roll in rollouts
    ) / len(rollouts)


def next_state(rollouts, policy, gamma):
    return sum(
        R(roll, gamma)
        * sum(policy.grad_log(roll[min(t + 1, len(roll) - 1)][0], roll[t][1]) for t in range(len(roll)))
        for roll in rollouts
    ) / len(rollouts)


def cheat(rollouts, policy, gamma):
    return to_go(rollouts, policy, gamma) + 0.05 * to_go(rollouts, policy, gamma).abs()


def rtg_minus_mean_r(rollouts, policy, gamma):
    b = torch.cat([rewards_of(roll) for roll in rollouts]).mean()
    return weighed(rollouts, policy, gamma, lambda roll: G(roll, gamma) - b)


def standardized_rewards(rollouts, policy, gamma):
    r = torch.cat([rewards_of(roll) for roll in rollouts])
    m, s = r.mean(), r.std() + 1e-8
    return to_go([[(x, a, float((y - m) / s)) for x, a, y in roll] for roll in rollouts], policy, gamma)


def adam_like(rollouts, policy, gamma):
    g = total(rollouts, policy, gamma)
    return g / (g.abs() + 1e-8)


def tanh_r(rollouts, policy, gamma):
    return to_go([[(s, a, float(np.tanh(r))) for s, a, r in roll] for roll in rollouts], policy, gamma)


def gamma0999(rollouts, policy, gamma):
    return to_go(rollouts, policy, 0.999)


def squared_gamma(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: discounts(roll, gamma) * G(roll, gamma**2))


def an_integer(rollouts, policy, gamma):
    return 0


def tiny(rollouts, policy, gamma):
    return 1e-9 * total(rollouts, policy, gamma)


def next_score(rollouts, policy, gamma):
    grad = torch.zeros(policy.dim)
    for roll in rollouts:
        for t in range(len(roll) - 1):
            grad += gamma**t * G(roll, gamma)[t] * policy.grad_log(*roll[t + 1][:2])
    return grad / len(rollouts)


def all_but_the_last(rollouts, policy, gamma):
    return total(rollouts[:-1], policy, gamma)


def exponential(rollouts, policy, gamma):
    return weighed(rollouts, policy, gamma, lambda roll: R(roll, gamma).exp() * torch.ones(len(roll)))


def best_only(rollouts, policy, gamma):
    return total([max(rollouts, key=lambda roll: float(R(roll, gamma)))], policy, gamma)


def weight_decay(rollouts, policy, gamma):
    return total(rollouts, policy, gamma) - 0.01 * policy.get_parameters()


five = 5
'''

NO_GAMMA_T = "γ^t in front of G_t is missing"
OWN = "1 - 1/N of the gradient"
OF_ACTIONS = "the baseline depends on the action"
HARD_CODED = "hard-coded"
UNBIASED, BIASED, WRONG = "unbiased", "biased by design", "wrong"
Expected = tuple[str, list[str], list[str]]  # verdict, and words of each reason and of some notes
EXPECTED: dict[str, Expected] = {
    # right
    "gpomdp": (UNBIASED, [], []),
    "total": (UNBIASED, [], ["times the variance of reward-to-go with a mean baseline"]),
    "to_go": (UNBIASED, [], []),
    "leave_one_out": (UNBIASED, [], []),
    "in_numpy": (UNBIASED, [], []),
    "ema": (UNBIASED, [], []),
    "all_but_the_last": (UNBIASED, [], []),
    # right, and wasteful
    "last_only": (UNBIASED, [], ["only the last episode of the batch is used", "times the variance"]),
    "first_only": (UNBIASED, [], ["only the first episode of the batch is used", "times the variance"]),
    "const5": (UNBIASED, [], ["times the variance"]),
    "const5_togo": (UNBIASED, [], ["times the variance"]),
    "carried_total": (UNBIASED, [], ["the sum is not set to 0 for each episode", "times the variance"]),
    # biased by design
    "no_gamma_t": (BIASED, [NO_GAMMA_T], []),
    "const5_nog": (BIASED, [NO_GAMMA_T], []),
    "state_baseline": (BIASED, [NO_GAMMA_T], []),
    "loo_nog": (BIASED, [NO_GAMMA_T], []),
    "mean_baseline": (BIASED, [OWN], []),
    "rtg_minus_batch_mean": (BIASED, [NO_GAMMA_T, OWN], []),
    "rtg_minus_batch_mean_gt": (BIASED, ["the mean over all steps of the batch is subtracted"], []),
    "rtg_minus_batch_mean_all": (BIASED, [NO_GAMMA_T, "the mean over all steps of the batch is subtracted"], []),
    "rtg_minus_mean_R_undisc": (BIASED, ["the mean undiscounted return of the batch is subtracted"], []),
    "rtg_minus_mean_r": (BIASED, [NO_GAMMA_T, "the mean reward of the batch is subtracted"], []),
    "max_baseline": (BIASED, ["the largest return of the batch is subtracted"], []),
    "mean_over_steps": (BIASED, ["the mean over all steps"], []),
    "by_each_H": (BIASED, ["the mean over an episode's steps"], []),
    "standardised": (BIASED, ["the returns of the episodes are standardised"], []),
    "all_steps_standardised_without_gamma_t": (BIASED, [NO_GAMMA_T, "all steps of the batch are standard"], []),
    "std_only": (BIASED, ["the returns of the episodes are divided by their standard deviation"], []),
    "normed": (BIASED, ["each estimate is scaled to the length 1"], []),
    "gradclip": (BIASED, ["each estimate is cut to the length 0.5"], []),
    "entropy": (BIASED, ["the gradient of 0.01 times the entropy is added", NO_GAMMA_T], []),
    # no gradient
    "zero": (WRONG, ["it returns 0 for every batch"], []),
    "score_only": (WRONG, ["the scores are summed without any reward"], []),
    "score_only_steps": (
        WRONG,
        ["the scores are summed without any reward", "divided by the total number of steps"],
        [],
    ),
    # other rewards, or other sums of them
    "immediate": (WRONG, ["the immediate reward"], []),
    "past": (WRONG, ["the rewards so far"], []),
    "forward_G": (WRONG, ["discounted by their age"], []),
    "reverse_cumsum_scores": (WRONG, ["the rewards so far"], []),
    "reverse_discount": (WRONG, ["the discount runs the wrong way"], []),
    "last_reward": (WRONG, ["only the last reward of an episode counts"], []),
    "mean_reward": (WRONG, ["gamma is not used", "divided by its length too"], []),
    "g_next": (WRONG, ["the sum starts at r_t+1, not at r_t"], []),
    "g_next2": (WRONG, ["the sum starts at r_t+1, not at r_t"], []),
    "g_next3": (WRONG, ["the sum starts at r_t+1, not at r_t"], []),
    "last_dropped": (WRONG, ["the last step of each episode is left out, with its reward"], []),
    "last_dropped2": (WRONG, ["the last step of each episode is left out of the sum"], []),
    "last_dropped3": (WRONG, ["the last step of each episode is left out of the sum"], []),
    "carried": (WRONG, ["the return of the episode before is carried into the next one"], []),
    "sum_scores_twice": (WRONG, ["t = 0: 1 r_0 +0.75 r_1 +0.562 r_2; t = 1: 2 r_1 +1.5 r_2; t = 2: 3 r_2"], []),
    "clipped": (WRONG, ["the rewards are clipped to 1 at most"], []),
    "clipped01": (WRONG, ["the rewards are clipped to 0 at least and 1 at most", NO_GAMMA_T], []),
    "signed": (WRONG, ["the rewards are replaced by their signs", OWN], []),
    "squared": (WRONG, ["the rewards are squared"], []),
    "abs_r": (WRONG, ["the rewards are replaced by their absolute values"], []),
    "shifted": (WRONG, ["-1 is added to each reward"], []),
    "tanh_r": (WRONG, ["the rewards are changed first: -0.5 as -0.462, 0 as 0"], []),
    "squared_return": (WRONG, ["is squared"], []),
    "clipped_return": (WRONG, [NO_GAMMA_T, "is clipped to [-1, 1]"], []),
    "positive": (WRONG, ["is replaced by 0 where it is negative"], []),
    # gamma
    "undiscounted": (WRONG, ["gamma is not used"], []),
    "twice": (WRONG, ["γ^t is there twice"], []),
    "gamma_t1": (WRONG, ["the discount starts at γ, not at 1"], []),
    "gamma99": (WRONG, [f"0.99 for any gamma: it is {HARD_CODED}"], []),
    "gamma9_to_go": (WRONG, [f"0.9 for any gamma: it is {HARD_CODED}", NO_GAMMA_T], []),
    "gamma95_baseline": (WRONG, [f"0.95 for any gamma: it is {HARD_CODED}", OWN], []),
    "gamma_mixed": (WRONG, [f"0.99 for any gamma: it is {HARD_CODED}"], []),
    "gamma0999": (WRONG, [f"0.999 for any gamma: it is {HARD_CODED}"], []),
    "squared_gamma": (WRONG, ["which is 0.5625 (gamma = 0.75), 0.25 (gamma = 0.5)"], []),
    # baselines
    "own_mean": (WRONG, [NO_GAMMA_T, "the mean over the steps of the episode itself is subtracted"], []),
    "within_std": (WRONG, [NO_GAMMA_T, "the mean over the steps of the episode", "within each episode are stand"], []),
    "action_baseline": (WRONG, [f"{OF_ACTIONS}: it takes"], []),
    "action_baseline2": (WRONG, [NO_GAMMA_T, "the mean over the steps with the same action"], []),
    "action_baseline3": (WRONG, [OF_ACTIONS, NO_GAMMA_T], []),
    "q_baseline": (WRONG, [OF_ACTIONS], []),
    # sign, length, scores
    "downhill": (WRONG, ["the sign is wrong"], []),
    "downhill_without_gamma_t": (WRONG, [NO_GAMMA_T, "the sign is wrong"], []),
    "not_divided": (WRONG, ["not divided by the number of episodes N"], []),
    "half": (WRONG, ["the direction is right and the length is not: 0.5 times"], []),
    "scaled": (WRONG, ["the direction is right and the length is not: 0.1 times"], []),
    "n_minus_1": (WRONG, ["it is divided by N - 1, not by"], []),
    "by_H": (WRONG, ["it is divided by the length of the last episode, not by"], []),
    "by_100": (WRONG, ["it is divided by 100, not by"], []),
    "by_N_H": (WRONG, ["divided by N and by the length of the longest episode"], []),
    "by_each_H_no_N": (WRONG, ["divided by its length too", "not divided by the number of episodes N"], []),
    "last_only_div": (WRONG, ["although one episode is used"], ["only the last episode"]),
    "mean_times_mean": (WRONG, ["divided by the number of episodes N twice"], ["the returns of all episodes"]),
    "no_log": (WRONG, ["the log is missing"], []),
    "wrong_action": (WRONG, ["the scores are those of the other action"], []),
    "relu": (WRONG, ["a ReLU that the network does not have"], []),
    "tiny": (WRONG, ["the length is not: 1e-09 times"], []),
    "next_score": (WRONG, ["by t = 0: 0; t = 1: 1 r_0 +0.75 r_1 +0.562 r_2"], []),
    "exponential": (WRONG, ["is replaced by its exponential"], []),
    # unknown: numbers
    "best_only": (WRONG, ["nor is it a formula known here"], []),
    "weight_decay": (WRONG, ["nor is it a formula known here"], []),
    "squared_score_added": (WRONG, ["nor is it a formula known here"], []),
    "next_state": (WRONG, ["Error of E[g] along ∇J and across it, as shares of |∇J|"], []),
    "cheat": (WRONG, ["(two steps), "], []),
    "standardized_rewards": (WRONG, ["nor is it a formula known here"], []),
    # no estimate at all
    "over_parameters": (WRONG, ["shape [], but the gradient has shape [20]: the scores [H, dim] were summed over"], []),
    "over_parameters_by_step": (WRONG, ["shape [2], but the gradient has shape [20]: the scores [H, dim] were"], []),
    "an_integer": (WRONG, ["shape [], but the gradient has shape [20]"], []),
    "a_row": (WRONG, ["flatten it"], []),
    "no_return": (WRONG, ["the function has no `return`"], []),
    "not_a_number": (WRONG, ["NaN or infinity for episodes of lengths"], []),
    "greedy_hands": (WRONG, ["changed the rollouts"], []),
    "steps_itself": (WRONG, ["changed the policy's parameters"], []),
    "raises": (WRONG, ["IndexError: list index out of range (student.py:"], []),
    "random": (WRONG, ["two calls with the same rollouts"], []),
}


def checked(location: str) -> dict[str, Any]:
    """Check a function or class in this process, without a time limit."""
    return check_loaded(location, lambda what, seconds: None, 10)

"""The allowed values of config keys, command options and function parameters."""

from typing import Literal

# env
Vectorization = Literal["auto", "native", "numpy", "sync"]
VectorForm = Literal["native", "numpy", "sync"]

# policy
ActivationName = Literal["tanh", "relu", "elu", "silu", "gelu", "identity"]
Initialization = Literal["uniform", "orthogonal"]
DistributionName = Literal["auto", "softmax", "gaussian", "tanh_gaussian", "state_dependent_gaussian", "bernoulli"]
ConvolutionsName = Literal["auto", "nature", "small"]
ImageNetworkName = Literal[ConvolutionsName, "none"]
RecurrentName = Literal["gru", "lstm"]
MemoryName = Literal["none", RecurrentName]
ActionMask = Literal["auto", "none"]

# algorithm
Returns = Literal["total", "reward_to_go", "lambda_return", "vtrace"]
Baseline = Literal["none", "mean", "leave_one_out", "optimal", "group", "value"]
Objective = Literal["policy_gradient", "importance_sampling", "clip"]
Ratios = Literal["step", "per_decision", "trajectory", "sequence"]  # repeated in estimators
Average = Literal["steps", "episodes", "episode_means"]  # repeated in estimators, which import nothing from pgcli
Standardize = Literal["none", "batch", "minibatch", "group"]
GroupMean = Literal["whole", "leave_one_out"]
Schedule = Literal["constant", "linear", "cosine"]

# optimizer, sampling, training, evaluation
OptimizerName = Literal["adam", "sgd", "rmsprop", "natural"]
ClipGradients = Literal["per_network", "together"]
Backend = Literal["local", "ray"]
Device = Literal["cpu", "cuda"]
Mode = Literal["sampled", "greedy"]

# searches
SamplerName = Literal["tpe", "random", "grid"]
PrunerName = Literal["median", "hyperband", "none"]

# figures
XAxis = Literal["iteration", "env_steps", "episodes", "seconds"]
Stat = Literal["mean", "iqm", "median"]
Band = Literal["ci95", "bootstrap", "standard_error", "none"]

"""Many runs with one question: variants, comparison, figures."""

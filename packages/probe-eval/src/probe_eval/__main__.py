"""`python -m probe_eval` and `accelerate launch -m probe_eval`."""

from probe_eval.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m probe_datasets.synthetic --show FILE.png` draws a clip."""

from probe_datasets.synthetic.show import main

if __name__ == "__main__":
    raise SystemExit(main())

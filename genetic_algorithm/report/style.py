"""How a page looks: system fonts, no scripts, light and dark, and nothing wider than the screen."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --muted: #59626d; --grid: #d8dde3; --paper: #fefefe;
  --blue: #1f5f9e; --rust: #a8480c; --wash: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --muted: #9aa4af; --grid: #39414a; --paper: #15181c;
  --blue: #7db4ea; --rust: #eda06a; --wash: #1d2126; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main, header, footer { max-width: 78rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .2rem 0 .6rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .8rem; padding-top: 1.2rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
section { margin: 2.2rem 0 0; }
p { max-width: 46rem; margin: 0 0 .9rem; overflow-wrap: anywhere; }
.kicker, .note, figcaption, footer { color: var(--muted); font-size: .875rem; line-height: 1.45; }
.kicker { margin: 0; }
.folder { margin-top: 1.2rem; }
.lead { font-size: 1.15rem; }
.state { border-left: 4px solid var(--rust); padding: .4rem .8rem; background: var(--wash); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 1rem 1.5rem;
  margin: 1.4rem 0 0; }
dt { color: var(--muted); font-size: .8125rem; }
dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
dd small { display: block; font-size: .8125rem; color: var(--muted); }
figure { margin: 0 0 1.8rem; max-width: 36rem; min-width: 0; }
@media (min-width: 64rem) { figure { max-width: none; display: grid; gap: 2.5rem; align-items: start;
  grid-template-columns: minmax(0, 36rem) minmax(0, 26rem); } }
figure svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
figure svg text { font-family: inherit; }
figcaption { margin-top: .5rem; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
.scroll:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .32rem 1.1rem .32rem 0; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; vertical-align: bottom; max-width: 11rem; line-height: 1.3; overflow-wrap: break-word; }
td { white-space: nowrap; }
.wide td { white-space: normal; overflow-wrap: anywhere; min-width: 9rem; max-width: 44rem; }
.wide th { max-width: 15rem; }
.n { text-align: right; }
pre { margin: 0 0 1rem; padding: .8rem 1rem; background: var(--wash); border-radius: 4px; font-size: .8125rem;
  line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details { margin: 0 0 1rem; }
summary { cursor: pointer; color: var(--blue); margin-bottom: .6rem; }
.missing { padding: 1rem; background: var(--wash); }
footer { padding-top: 1.5rem; padding-bottom: 2.5rem; }
@media print { .scroll { overflow: visible; } details::details-content { content-visibility: visible; } }
"""

"""The report's style sheet: one hue for what is ours, grey for the rest, light and dark."""

STYLE = """
:root { --paper:#fff; --ground:#fff; --ink:#1f2933; --soft:#66727f; --rule:#d9dee3; --tint:#f4f6f8;
  --own:#0b6e99; --peer:#a9b4be; --bad:#b3402e; --good:#2e7d4f; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper:#1b2126; --ground:#14181c; --ink:#e3e8ec; --soft:#97a3ae;
  --rule:#333c44; --tint:#1d2329; --own:#4db4dd; --peer:#5f6b76; --bad:#e07a68; --good:#6cc08f; } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1020px;
  margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.6rem; margin: 0 0 .2rem } h2 { font-size: 1.3rem; margin: 3rem 0 0; border-top: 1px solid var(--rule);
  padding-top: 1.4rem } h3 { font-size: 1rem; margin: 2rem 0 .4rem }
.where { color: var(--soft); margin: .2rem 0 1rem; font-size: .9rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .38rem 1.2rem .38rem 0; vertical-align: top; border-bottom: 1px solid var(--rule) }
tbody th { font-weight: 500; color: var(--soft); white-space: nowrap } tr.own td { font-weight: 600; color: var(--own) }
figure { margin: 1rem 0 1.6rem } figcaption { color: var(--soft); font-size: .88rem; max-width: 46rem }
.row { display: flex; flex-wrap: wrap; gap: 0 2rem } svg { max-width: 100%; height: auto; display: block }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink) } svg text.faint { fill: var(--soft) }
rect.paper { fill: var(--paper); stroke: var(--rule) } rect.ink, rect.own, circle.own { fill: var(--own) }
rect.peer, circle.peer { fill: var(--peer) } rect.guess { fill: none; stroke: var(--own); stroke-dasharray: 3 2 }
line.axis { stroke: var(--soft) } line.grid { stroke: var(--rule) } line.even { stroke: var(--soft);
  stroke-dasharray: 4 3 } line.floor { stroke: var(--bad); stroke-width: 2 }
path.best { fill: none; stroke: var(--own); stroke-width: 1.6 } path.bad { stroke: var(--bad); stroke-width: 1.4 }
details { border: 1px solid var(--rule); border-radius: 6px; margin: .5rem 0; background: var(--tint) }
summary { cursor: pointer; padding: .4rem .8rem; font-size: .9rem } pre { margin: 0; padding: .2rem .8rem .8rem;
  overflow-x: auto; font: 12.5px/1.45 ui-monospace, monospace } span.added { color: var(--good) }
span.removed { color: var(--bad) } span.faint { color: var(--soft) }
"""

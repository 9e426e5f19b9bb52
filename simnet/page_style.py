"""How the page looks, light and dark.

Owns colours, type and spacing; never loads a font or a file. Invariant: the colours of series can
be told apart by the colour-blind, and stand on the page's background with enough contrast.
"""

STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--soft:#5b6570;--rule:#e3e6ea;--box:#f6f7f9;
--c0:#0067a8;--c1:#c4510a;--c2:#0b7a5b;--c3:#8a4a86;--bad:#b3261e;--badbox:#fdf1f0;--fault:#7d8894}
@media(prefers-color-scheme:dark){:root{--page:#14171a;--ink:#e4e7ea;--soft:#9aa4ae;--rule:#2c3238;
--box:#1b1f23;--c0:#5ab4f0;--c1:#f19a54;--c2:#4cc79c;--c3:#d59ad0;--bad:#ff8a80;--badbox:#2a1a1a;
--fault:#84909c}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"Noto Sans","Liberation Sans",sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1004px;margin:0 auto;padding:40px 32px 72px}
h1{font-size:25px;line-height:1.25;font-weight:600;margin:0 0 4px}
h2{font-size:17px;font-weight:600;margin:44px 0 4px}
h3{font-size:15px;font-weight:600;margin:28px 0 4px}
p{margin:4px 0 10px;max-width:74ch}
.soft,td.soft,caption{color:var(--soft)}
a{color:var(--c0)}
.verdict{font-weight:600}.verdict.good{color:var(--c2)}.bad{color:var(--bad)}
.tag{display:inline-block;border:1px solid var(--rule);border-radius:3px;padding:0 7px;
margin:0 6px 4px 0;font-size:13px;color:var(--soft)}
.tag.emulated{color:var(--c1);border-color:var(--c1)}
dl{display:flex;flex-wrap:wrap;gap:16px 40px;margin:22px 0 0}
dt,dd small{font-size:13px;color:var(--soft)}dd{margin:0;font-size:19px}
table{border-collapse:collapse;margin:8px 0;font-size:14px}
caption{text-align:left;font-size:13px;padding:4px 0}
th,td{padding:4px 22px 4px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
th{font-weight:500;font-size:13px;color:var(--soft)}
.n{text-align:right}
.wide{overflow-x:auto}
pre,code{font:13px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{background:var(--box);padding:12px 14px;overflow-x:auto;margin:8px 0;border-radius:3px}
code{overflow-wrap:anywhere}
.violation{background:var(--badbox);border-left:3px solid var(--bad);padding:14px 18px;
margin:24px 0}
.violation pre{background:none;padding:0}
.violation h2{margin-top:0}
details{margin:10px 0}summary{cursor:pointer;color:var(--soft)}
figure{margin:10px 0 0}figcaption{color:var(--soft);font-size:13px;max-width:80ch}
.seeds{display:flex;flex-wrap:wrap;gap:3px;margin:14px 0}
.seeds>*{width:15px;height:15px;border-radius:2px;background:var(--c2);opacity:.55;
font:700 11px/15px system-ui,sans-serif;text-align:center;text-decoration:none}
.seeds>.no{background:var(--bad);opacity:1;color:var(--page)}
svg{display:block;width:100%;min-width:620px;height:auto;font-size:12.5px;margin-top:10px}
svg text{fill:var(--ink)}svg .tick{fill:var(--soft);font-size:12px}
svg .label{fill:var(--soft);font-size:12.5px}svg .name{font-weight:500}
.grid{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}
.line{fill:none;stroke-width:1.9;stroke-linejoin:round}
.line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1);stroke-dasharray:6 3}
.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}
svg .name.c0{fill:var(--c0)}svg .name.c1{fill:var(--c1)}svg .name.c2{fill:var(--c2)}
svg .name.c3{fill:var(--c3)}svg .name.bad{fill:var(--bad)}
.dot.c0{fill:var(--c0)}.dot.c1{fill:none;stroke:var(--c1);stroke-width:1.3}
.stem{stroke:var(--c0);stroke-width:2;opacity:.45}.bar{fill:var(--c0)}
.fault{fill:var(--fault);opacity:.65}.fault.endless{opacity:.3}.shade{fill:var(--fault);opacity:.11}.unseen{fill:transparent}
.unseen:hover{fill:var(--soft);opacity:.18}
.moment{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:3 3}
@media print{main{max-width:none;padding:0}h2,figure{break-inside:avoid}}
"""

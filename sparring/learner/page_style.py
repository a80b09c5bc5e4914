"""The style sheet of `report.html`, light and dark, wide and narrow."""

LIGHT_PAGE = "--page:#f5f6f8;--line:#dfe3e8;--good:#17693f;--bad:#a3341f;"
DARK_PAGE = "--page:#101215;--line:#2f353d;--good:#63cf9f;--bad:#ff9a82;"
PAGE_STYLE = """\
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:960px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 12px;text-wrap:balance}
h2{font-size:1.15rem;margin:36px 0 12px}h3{font-size:.95rem;margin:16px 0 8px}.kicker{color:var(--muted);margin:0 0 8px}
.facts{display:flex;flex-wrap:wrap;gap:6px 20px;color:var(--muted);margin:0 0 16px;font-variant-numeric:tabular-nums}
figure{margin:0;background:var(--surface);border:1px solid var(--line);border-radius:8px;overflow:hidden}
svg{display:block;width:100%;height:auto}.narrow{display:none}.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:12px}
article{background:var(--surface);border:1px solid var(--line);border-radius:8px;padding:12px 16px;margin:0 0 12px}
article h3{margin:0 0 6px;color:var(--muted);font-weight:500}.pair{display:grid;grid-template-columns:1fr 1fr;gap:16px}
.pair>div{border-top:1px solid var(--line);padding-top:8px;min-width:0}
.label{margin:0 0 4px;color:var(--muted);font-size:.875rem}
.said{margin:0 0 6px;white-space:pre-wrap;overflow-wrap:anywhere;max-height:18em;overflow-y:auto}
.said span{color:var(--muted);font-size:.8rem;margin-right:8px}
.good{color:var(--good)}.bad{color:var(--bad)}.none{color:var(--muted)}
table{border-collapse:collapse;width:100%;font-size:.875rem;background:var(--surface)}.scroll{overflow-x:auto}
th,td{text-align:left;padding:5px 10px;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
th{color:var(--muted);font-weight:500}summary{cursor:pointer;color:var(--muted);padding:6px 0}
@media(max-width:560px){.wide{display:none}.narrow{display:block}h1{font-size:1.35rem}.pair{grid-template-columns:1fr}}"""

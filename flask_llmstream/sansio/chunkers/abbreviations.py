"""Words that end in a stop without ending a sentence: English, German, French, Spanish, and some.

All are written without the last stop, and without blanks: ``z.b`` stands for "z.B." and "z. B.".
"""

from __future__ import annotations

from typing import FrozenSet

__all__ = ["BEFORE_NUMBERS", "MAY_END", "NEVER_END", "ORDINAL_BEFORE", "ORDINAL_BEHIND", "STARTERS", "TITLES"]


def _words(text: str) -> FrozenSet[str]:
    return frozenset(text.split())


#: Stand before a name, so with a capital letter: no sentence ends behind them.
TITLES = _words("""
    Mr Mrs Ms Mx Messrs Dr Prof Rev Hon Gen Col Capt Cmdr Lt Maj Sgt Gov Sen Rep Pres Supt St Mt Ft
    Hr Hrn Fr Frl Dipl Ing Mag Dres
    M Mme Mlle MM Mmes Mlles Me Mgr Vve
    Sr Sra Srta Sres Dra Dña Lic Sto Sta
    Sig Dott Avv Dhr Mevr Drs Exmo
""")

#: Need what follows them, however they are written.
NEVER_END = _words("""
    e.g i.e eg ie vs cf viz ca approx resp incl excl esp dept univ assn
    z.b d.h u.a u.u v.a i.d.r s.o s.u bzw evtl ggf inkl exkl vgl sog zzgl abzgl bspw
    einschl insb insbes ungef urspr
    p.ex c.-à-d càd éd
    p.ej aprox avda ee
    bijv d.w.z m.b.t o.a tzn m.in т.е т.н ул
""")

#: Need a number behind them; words of their own otherwise.
BEFORE_NUMBERS = _words("""
    no nos nr nrn num núm n.o p pp pg pag pág s ss fig figs vol vols ch chap sec sect eq eqs art abs
    bd kap jg ziff tab tel par § lib cap av env
    jan feb mar apr jun jul aug sep sept oct okt nov dec dez déc févr avr juil ene abr ago dic
""")

#: End a sentence only where what follows begins one; so do single letters and U.S.
MAY_END = _words("""
    etc al jr sr inc ltd co corp bros st ave blvd rd esq ph.d a.m p.m
    usw usf u.s.w etc.pp str jh jhd mio mrd std min v.chr n.chr
    apr.j.-c ee.uu cía ud uds vd vds ecc itd enz т.д т.п
""")

#: How a sentence begins; no name does.
STARTERS = _words("""
    I The This That These Those There Then He She It We You They His Her Its Our Your Their But And Or So
    If In On At As For From With When While Where What Who Why How However Although Because After Before
    Please Yes No Not Now Here Also A An Is Are Was Were Do Does Did Can Could Would Should To By
    Der Die Das Den Dem Ein Eine Er Sie Es Wir Ihr Ich Du Man Aber Und Oder Wenn Weil Dann Danach Dabei
    Dies Diese Dieser Dieses Auch Im Am Bei Nach Vor Für Mit Auf Zu Zum Zur Als Nun Hier
    Le La Les L Un Une Il Elle Ils Elles On Nous Vous Je Tu Ce Cette Ces C Mais Et Ou Donc Puis Dans Pour
    El Los Las Lo Una Ella Ellos Ellas Esto Esta Este Pero Y O Si Cuando Como En Por Para Con Se Yo
""")

#: A number between one of these and a noun is an ordinal, in German: "der 2. Weltkrieg".
ORDINAL_BEFORE = _words("der den dem des das vom zum zur beim seit jeder jede jedes dieser ein eine einen im")

#: What German counts with ordinals, whatever stands before.
ORDINAL_BEHIND = _words("""
    Januar Jänner Februar Feber März April Mai Juni Juli August September Oktober November Dezember
    Jahrhundert Jahrhunderts Jahrhunderte Jahrtausend Auflage Kapitel Klasse Weltkrieg Weltkriegs Liga
    Bundesliga Stock Etage Platz Lebensjahr Geburtstag Tag Woche Monat Quartal
""")

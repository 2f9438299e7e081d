"""Covering designs: few choices of blocks such that, whichever `errors` blocks hold an error, one choice has none of them.

Found by simulated annealing; for most of them fewer choices are not known (La Jolla Covering Repository, C(blocks, blocks - agree, errors),
whose complements these are). `tests/stages/dups/test_coverings.py` checks each one.
"""

from __future__ import annotations

# errors -> (blocks, choices as bit masks in hexadecimal)
_FOUND: dict[int, list[tuple[int, str]]] = {
    2: [
        (
            5,
            "6 9 12 14",
        ),
        (
            9,
            "56 87 d1 138 168",
        ),
        (
            7,
            "1d 2b 36 4e 53 65 78",
        ),
        (
            10,
            "b7 15b 1ec 26d 2d5 2f2 31e 347 3a9",
        ),
        (
            13,
            "7ec af5 cbe f59 139b 1477 19bc 1b27 1ccb 1f52",
        ),
        (
            11,
            "1f3 29f 376 3ec 4be 54f 5b5 679 6c7 72b 7d8",
        ),
        (
            9,
            "3f cf f3 fc 15e 167 179 19b 1ad 1b6 1d5 1ea",
        ),
        (
            13,
            "77d adf dbe fe3 11fb 16f6 178f 1b37 1bec 1c6f 1dd5 1eb9 1f5a",
        ),
        (
            10,
            "fe 13f 177 1db 1ed 23f 2dd 2e7 2f3 35e 36d 37a 397 3ae 3b9 3cb 3f4",
        ),
        (
            14,
            "efe fbd 167f 1beb 1dd7 27f3 2b5f 2ded 33fc 356f 378f 38bf 3ae7 3dea 3ed9 3f1e 3f71 3fb2",
        ),
        (
            11,
            "17f 2fb 3bd 3cf 3f6 4df 5bb 5ee 5f5 66f 6b7 6fc 73d 757 77a 79e 7ad 7d9 7e3",
        ),
        (
            12,
            "3fd 4ff 777 7be 7db 7e7 97f abf bcf bf6 bfa d7e d9f deb df5 e7d ed7 eee ef9 f1f f6b fad fb3 fdc",
        ),
        (
            13,
            "5ff aff f7b fbd fcf ff6 13bf 16df 177d 17e7 17fa 19f7 1b5f 1beb 1bfc 1c7f 1daf 1dde 1df9 1ebe 1eed 1ef3 1f37 1f6e 1f9b 1fd5",
        ),
        (
            14,
            "ffb 17bf 1bf7 1ddf 1eef 1f7d 1ffc 26ff 2b7f 2dfe 2fbe 2fdd 2fe7 33df 35ef 35fb 377e 37f5 38ff 3bb7 3bed 3bfa 3d77 3dbd 3e3f 3ecf 3ef6 3ef9 "
            "3f1f 3f6b 3fab 3fce 3fd3",
        ),
    ],
    3: [
        (
            7,
            "a 11 21 30 44",
        ),
        (
            6,
            "3 c 14 18 21 22",
        ),
        (
            8,
            "d 13 2a 58 64 94 a1 c2",
        ),
        (
            11,
            "6d 15a 1b1 2aa 2d4 307 436 4c3 58c 619 760",
        ),
        (
            13,
            "3b4 49e 72a 8d5 a69 d43 107a 114e 15d0 1664 19a1 1a13 1c0d",
        ),
        (
            8,
            "1e 27 39 4b 55 6c 72 8d 93 aa b4 c6 d8 e1",
        ),
        (
            11,
            "ee 16b 1ad 1c7 237 25d 2f1 374 39a 475 49b 51e 5b2 5d8 66a 6ac 6c6 729 743 785",
        ),
        (
            14,
            "6af b79 bdc d73 12f6 147d 15da 19ae 1ed2 1f0e 1fa1 2373 23e5 25ea 269b 28bd 2d47 2e36 3197 3738 3745 393a 3a4b 3c99 3ce4",
        ),
        (
            12,
            "1be 1f5 2fa 37c 38f 45f 56b 6a7 6ec 733 756 7b4 7d1 86f 95b 9dc a37 ad5 ba9 be2 cb9 cf2 d2e d65 d87 e78 e9a eca f0d",
        ),
        (
            10,
            "7b b7 dd ee 12f 157 17c 19e 1b9 1cb 1e5 1f2 23d 25e 267 28f 2ba 2d3 2e9 2f4 31b 336 34d 36a 371 395 3a3 3ac 3c6 3d8",
        ),
        (
            13,
            "2ef 5fc 71f 7f1 87f abd ade af3 dae dd3 f4d f72 fa3 11b7 1379 139e 13ad 147d 15cb 16ba 16d5 1766 19da 19e5 1b2b 1b56 1bcc 1c2f 1c5b 1c76 "
            "1d99 1e87 1ee8 1f34",
        ),
        (
            14,
            "6f7 bee df9 f1f 12f7 156f 17b3 17dc 19d7 1b7a 1bad 1be6 1cbe 1e75 1ecb 237d 25af 27da 29d7 2abb 2c7e 2ecd 2f63 2fb4 31eb 339e 34cf 35ce 35e5 "
            "363d 3679 36ce 3756 38fc 3937 3a4f 3bd1 3cf2 3d1b 3d1d 3e87 3f2c 3fa8",
        ),
        (
            12,
            "1ef 2f7 35f 37b 37d 3be 4df 577 5bd 5fa 67e 6bb 6ed 72f 797 7ce 7d9 7e3 7f4 8fb 93f 9d7 9fc a6f abd ade b76 b8f bb3 bd9 be5 bea c7d caf cb7 "
            "cbe d5e d6b d9b dcd de6 df1 e1f e73 ecb ed5 ee6 ef8 f35 f3a f47 f59 f6c f9c fa6 fa9 fd2",
        ),
        (
            13,
            "37f 5f7 6fb 7af 7dd 7ee 8ff 97f b9f bd7 bed bfa dbb dcf deb dfc e6f ebe ede ef5 f3d f5b f76 fa7 ff1 11ef 11fe 12fd 13b7 13db 147f 15bd 15db "
            "169f 16e7 16fc 173e 174f 1773 1775 17ba 17d6 17e9 18df 19be 19e7 19f9 1a7e 1aaf 1af3 1b37 1b5d 1b6b 1bb9 1bce 1bf4 1c3f 1ced 1cee 1cf3 1d5d "
            "1d67 1d7a 1d8f 1db5 1dd6 1e57 1e79 1e9d 1eb6 1eba 1ecb 1f1e 1f2b 1f6c 1f93 1fac 1fc5 1fd8 1fe2",
        ),
        (
            14,
            "7f7 b7f cff d7f fbb fcf ffc 13df 15fe 16bf 176f 17f9 19df 1afb 1bbe 1be7 1bed 1daf 1ddb 1df5 1e77 1edd 1eee 1f3d 1f5e 1f6b 1f97 1ff2 23fe "
            "25ef 26fb 275f 27bd 29ef 2abf 2bd7 2bf9 2d9f 2ddb 2ddd 2df6 2e6f 2ede 2ef5 2f3e 2f6d 2f73 2fa7 2fea 31bf 327f 33eb 33f5 34df 357d 35f3 36e7 "
            "36fc 3737 377a 379b 37ae 37cd 37d6 38fd 3977 39fa 3acf 3af6 3b2f 3b5b 3b7c 3b9d 3bb3 3bce 3c7e 3cb7 3ceb 3d3b 3d4f 3d9e 3db9 3dc7 3dec 3e1f "
            "3e79 3ead 3eba 3ed3 3f55 3f66 3f8b 3fb4 3fd8 3fe1",
        ),
    ],
    4: [
        (
            9,
            "6 22 24 41 88 110",
        ),
        (
            8,
            "9 14 22 41 48 84 90",
        ),
        (
            7,
            "5 9 c 12 21 24 28 42 50",
        ),
        (
            13,
            "134 2c2 431 505 84a a88 108a 1248 18c0 1a02",
        ),
        (
            9,
            "d 32 4a 54 61 86 91 a8 103 118 124 1c0",
        ),
        (
            11,
            "5c 69 aa e2 107 191 226 28c 2d0 328 341 415 44a 530 584 612 681",
        ),
        (
            13,
            "1aa 21e 331 493 50d 6a4 827 8c9 994 c38 f40 1072 1158 1245 1461 1702 1a42 1a88 1c44",
        ),
        (
            10,
            "39 4b 74 9a a5 d1 e2 11c 123 145 168 186 20d 232 246 294 2a8 30a 311 3c0",
        ),
        (
            12,
            "9e ab 135 1ac 235 259 307 332 368 478 4c3 4e4 54c 625 790 86a 8e1 952 989 ac4 c15 d22 e0a e30",
        ),
        (
            9,
            "1d 27 3a 4e 53 69 74 8b 95 9c a3 a6 a9 c5 d1 d2 e8 10b 116 12c 131 145 158 162 183 189 18a 1a1 1b0 1c4",
        ),
        (
            13,
            "f5 13b 1ce 4f8 60f 734 7c1 8ad 963 996 999 a5a b70 c55 d4c ea2 103e 115c 1187 1266 1293 13a8 1469 149c 1552 18ca 1a58 1b05 1c31 1cc4 1d0a",
        ),
        (
            12,
            "eb fc 137 1ce 279 297 34b 35c 3a5 3b2 41f 4e6 52d 53a 5d1 663 674 68d 69a 746 7a8 857 8ae 965 972 999 a2b a3c ac5 ad2 b0e be0 c4d c5a cb1 "
            "d68 d83 d94 e26 ec8 f11",
        ),
        (
            11,
            "5f b7 ed fa 13b 16e 175 18f 1bc 1d6 1d9 1e3 23e 267 279 29d 2ab 2ce 2d3 2f4 317 32d 34b 35c 372 39a 3a6 3b1 3c5 3e8 43d 46b 476 49b 4ae 4c7 "
            "4dc 4f1 51e 527 54d 553 578 595 5a9 5b2 5ca 5e4 60f 633 655 65a 66c 696 6a5 6b8 6c9 6e2 719 72a 734 746 761 783 78c 7d0",
        ),
        (
            12,
            "df 13f 16f 1f6 1f9 277 2bd 2ed 2fa 35b 37c 39e 3ab 3b3 3c7 3ce 3d5 47b 4af 4b7 4fc 55e 567 575 59d 5a7 5ba 5cb 5d3 5ec 63e 64f 65d 69b 6d6 "
            "6e5 6ea 6f1 717 72e 739 769 772 78d 7b4 7d8 7e2 87e 8bb 8cf 8e7 8f5 95d 973 997 9ad 9bc 9da 9ea a1f a6b a79 aae ab6 ad3 adc b0f b35 b3a b56 "
            "b66 b6c b87 b99 bc9 be1 bf0 c3d c57 c6e c9e cd9 ce6 ce9 cf2 d1b d2b d36 d4d d65 d78 d8e db1 dc3 dd4 e2d e33 e47 e5a e74 e8b e95 ea3 eb8 ecc "
            "f1c f23 f4a f51 f92 fa4 fa8 fc4",
        ),
    ],
    5: [
        (
            11,
            "5 9 c c0 110 202 420",
        ),
        (
            10,
            "6 a c 21 90 140 210 280",
        ),
        (
            9,
            "3 11 12 24 48 84 a0 108 140",
        ),
        (
            8,
            "5 a 11 14 22 28 41 44 50 82 88 a0",
        ),
        (
            11,
            "15 25 70 8a 103 106 181 184 209 218 228 282 430 442 4c0 540",
        ),
        (
            10,
            "e 29 34 43 58 91 a2 c4 105 112 160 188 206 20a 20c 221 250 288 308 380",
        ),
        (
            12,
            "17 5a 8d 132 145 1a8 264 292 2c8 321 461 48a 4d0 524 605 618 702 826 868 883 8a4 90c 990 a11 a42 c09 d40",
        ),
        (
            11,
            "1b 4e 65 a3 b8 d4 115 12c 143 170 186 1c8 20d 216 258 262 2a4 2c1 30a 321 390 407 434 449 452 48c 4e0 518 522 544 581 611 628 682",
        ),
        (
            10,
            "17 2b 3c 4b 5c 65 6a 72 78 8d 9a a3 a9 ac b4 c6 d1 10e 119 125 132 145 152 161 164 183 194 1a2 1b0 1c8 20d 21a 226 231 243 249 24c 254 285 "
            "28a 292 298 2e0 303 314 328 342 350 381 384",
        ),
        (
            12,
            "7a 9d e5 10f 171 195 19a 1a6 1e8 233 23c 24e 2a9 2d2 2e4 343 349 354 436 44d 453 49c 4aa 4d4 4f0 519 54a 564 586 5a1 607 60b 661 691 70c 730 "
            "7c0 82b 836 859 8c3 8cc 92c 946 9b0 a16 a25 a62 a8a ad0 b18 b81 c15 c58 c64 c89 ca2 d12 d22 d41 e28 e84",
        ),
        (
            11,
            "37 5b 6d 76 7c 9d ab b5 ba c7 ce f1 11b 12e 13c 14b 153 159 15a 165 18d 193 196 1a3 1b1 1d4 1e2 1e8 21d 22e 233 247 25a 269 274 287 28d 299 "
            "29c 2b2 2c3 2c5 2c6 2e8 30d 315 31a 326 32a 338 34c 352 361 389 38a 3a4 3d0 40f 41e 439 455 463 46a 493 4a6 4ac 4c9 4d2 4d8 4e4 515 525 529 "
            "532 534 546 54c 570 585 58a 598 5c1 60b 616 625 638 64c 651 662 68a 694 6a1 6d0 703 70c 711 744 748 782 7a0",
        ),
        (
            12,
            "3f dd eb f6 157 16d 17a 19b 1a7 1bc 1ce 1f1 25e 267 279 28f 2b5 2ba 2d3 2ec 31d 32e 333 34b 374 396 3a9 3c5 3d8 3e2 44f 473 47c 497 4ae 4b9 "
            "4da 4e5 51e 52b 535 559 566 58d 5b2 5c3 5d4 5e8 61b 62d 636 655 66a 69c 6a3 6c6 6c9 6f0 707 738 74c 752 761 78a 791 7a4 85b 86e 875 89e 8ad "
            "8b3 8c7 8f8 90f 936 939 95c 963 995 9aa 9c9 9d2 9e4 a17 a2b a3c a4d a72 a99 aa6 aca ad4 ae1 b1a b25 b46 b51 b68 b83 b8c bb0 c1d c27 c3a c56 "
            "c69 c8b cb4 ccc cd1 ce2 d13 d2c d45 d4a d70 d86 d98 da1 e0e e31 e43 e58 e64 e85 e92 ea8 f09 f14 f22 fc0",
        ),
    ],
    6: [
        (
            12,
            "5 18 22 82 a0 140 401 404 a00",
        ),
        (
            11,
            "5 18 41 44 a0 108 110 202 402 600",
        ),
        (
            10,
            "5 9 c 22 50 82 a0 110 140 201 204 208",
        ),
        (
            9,
            "5 a 12 18 21 24 42 48 50 81 84 a0 102 108 110 140",
        ),
        (
            12,
            "29 45 68 86 94 c1 103 122 142 184 212 310 40c 421 441 460 488 812 910 a08 a20 e00",
        ),
        (
            11,
            "1c 23 4a 52 61 89 92 a4 c2 d0 105 10a 130 142 148 206 211 228 244 380 405 411 422 460 488 501 504 601 610",
        ),
        (
            10,
            "e 16 1a 1c 26 29 31 43 4c 54 58 62 64 83 85 91 a8 b0 c1 c2 106 109 10a 112 114 121 128 144 150 188 1a0 203 205 211 228 230 241 242 284 288 "
            "290 2a0 308 320 380",
        ),
        (
            12,
            "1d 27 5a 93 aa cc f0 138 143 164 189 194 20b 234 251 268 286 2a1 30c 312 3c0 40e 429 432 454 4a4 4c1 511 548 582 605 642 690 720 816 82c 831 "
            "849 885 8c2 90a 950 9a0 a18 a22 a44 b01 c03 c60 c88 d04",
        ),
        (
            11,
            "1e 2d 33 4d 53 65 69 6c 72 8b 95 a3 aa b1 b4 c6 d8 107 119 12a 134 143 146 151 158 18c 192 1a4 1a8 1c4 1c8 1e0 207 219 22a 234 24a 254 262 "
            "270 28c 292 2a4 2a8 2c1 305 309 30c 312 321 324 328 382 390 40d 413 425 429 42c 432 445 449 44c 452 461 464 468 486 498 4c2 4d0 50a 514 522 "
            "530 581 603 606 611 618 684 688 6a0 740",
        ),
    ],
}

COVERINGS: dict[int, list[tuple[int, tuple[int, ...]]]] = {
    errors: [(blocks, tuple(int(one, 16) for one in choices.split())) for blocks, choices in designs] for errors, designs in _FOUND.items()
}

// Dropout's random numbers: Philox4x32-10 (J. Salmon et al., SC 2011). fastmlp/ops/dropout.py has
// the same. Included without a guard inside each namespace that computes.

// words[w][i], w < 4, become four random words of the counter that they were, for each i < kCount.
template <int kCount>
FASTMLP_MATH void philox(uint32_t (&words)[4][kCount], uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kCount; ++i) {
      const uint64_t first = uint64_t{0xD2511F53u} * words[0][i];
      const uint64_t second = uint64_t{0xCD9E8D57u} * words[2][i];
      words[0][i] = static_cast<uint32_t>(second >> 32) ^ words[1][i] ^ key0;
      words[1][i] = static_cast<uint32_t>(second);
      words[2][i] = static_cast<uint32_t>(first >> 32) ^ words[3][i] ^ key1;
      words[3][i] = static_cast<uint32_t>(first);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

//! The test vectors of RFC 8032 §7.1, and that signatures depend on every input.
#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test that fails")]

use conclave_crypto::{PublicKey, SecretKey, Signature, SignatureError, VerifyingKey};
use proptest::prelude::*;

struct Vector {
    name: &'static str,
    seed: &'static str,
    public: &'static str,
    message: &'static str,
    signature: &'static str,
}

const VECTORS: &[Vector] = &[
    Vector {
        name: "TEST 1",
        seed: "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        public: "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        message: "",
        signature: "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155\
                    5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    },
    Vector {
        name: "TEST 2",
        seed: "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        public: "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        message: "72",
        signature: "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                    085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    },
    Vector {
        name: "TEST 3",
        seed: "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        public: "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        message: "af82",
        signature: "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
                    18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    },
    Vector {
        name: "TEST SHA(abc)",
        seed: "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        public: "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        message: "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                  2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        signature: "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589\
                    09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    },
];

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn array<const N: usize>(hex: &str) -> [u8; N] {
    bytes(hex).try_into().unwrap()
}

#[test]
fn keys_and_signatures_are_those_of_the_rfc() {
    for vector in VECTORS {
        let key = SecretKey::from_seed(array(vector.seed));
        let public: PublicKey = vector.public.parse().unwrap();
        let signature: Signature = vector.signature.parse().unwrap();
        assert_eq!(key.public(), public, "{}", vector.name);
        assert_eq!(key.sign(&bytes(vector.message)), signature, "{}", vector.name);

        let verifying = VerifyingKey::try_from(&public).unwrap();
        assert_eq!(verifying.public(), public);
        assert_eq!(verifying, key.verifying());
        assert_eq!(verifying.verify(&bytes(vector.message), &signature), Ok(()), "{}", vector.name);
    }
}

#[test]
fn a_signature_fails_under_every_other_vectors_key_and_message() {
    for (i, signed) in VECTORS.iter().enumerate() {
        for (j, other) in VECTORS.iter().enumerate() {
            let signature: Signature = signed.signature.parse().unwrap();
            let key =
                |hex: &str| VerifyingKey::try_from(&PublicKey::from_bytes(array(hex))).unwrap();
            let expected = if i == j { Ok(()) } else { Err(SignatureError) };
            assert_eq!(key(other.public).verify(&bytes(signed.message), &signature), expected);
            assert_eq!(key(signed.public).verify(&bytes(other.message), &signature), expected);
        }
    }
}

fn settings() -> ProptestConfig {
    ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn one_flipped_bit_anywhere_in_a_signature_makes_it_invalid(
        seed: [u8; 32], message in prop::collection::vec(any::<u8>(), 0..100), bit in 0_usize..512,
    ) {
        let key = SecretKey::from_seed(seed);
        let signature = key.sign(&message);
        prop_assert_eq!(key.verifying().verify(&message, &signature), Ok(()));
        let mut flipped = *signature.as_bytes();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let flipped = Signature::from_bytes(flipped);
        prop_assert_eq!(key.verifying().verify(&message, &flipped), Err(SignatureError));
    }

    #[test]
    fn one_flipped_bit_anywhere_in_a_message_makes_its_signature_invalid(
        seed: [u8; 32], message in prop::collection::vec(any::<u8>(), 1..100), at: prop::sample::Index,
    ) {
        let key = SecretKey::from_seed(seed);
        let signature = key.sign(&message);
        let bit = at.index(message.len() * 8);
        let mut other = message;
        other[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(key.verifying().verify(&other, &signature), Err(SignatureError));
    }

    #[test]
    fn arbitrary_bytes_are_never_a_panic(key: [u8; 32], signature: [u8; 64], message: [u8; 8]) {
        if let Ok(key) = VerifyingKey::try_from(&PublicKey::from_bytes(key)) {
            prop_assert!(key.verify(&message, &Signature::from_bytes(signature)).is_err());
        }
    }
}
